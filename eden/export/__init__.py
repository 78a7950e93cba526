"""Eden outside this machine: a wheel of itself, a folder that is a Space, and the way to the hub."""
