"""Where images come from: cores, live processes, raw bytes. Each source yields the state of threads."""
