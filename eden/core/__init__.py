"""What every room stands on: files, processes, the console, the machine."""
