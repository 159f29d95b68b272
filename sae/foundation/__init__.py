"""What all rooms stand on: devices, processes, files, settings, progress, plug-ins. Nothing here knows what a dictionary is."""
