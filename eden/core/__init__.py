"""What everything else stands on: files, processes, the machine. Imports nothing of Eden above itself."""
