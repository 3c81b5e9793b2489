"""What each built-in guest program must answer, computed here without the program."""
