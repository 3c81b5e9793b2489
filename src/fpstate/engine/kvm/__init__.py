"""Guests on real KVM vCPUs, by ``fcntl.ioctl`` and ``mmap`` alone."""
