"""Where frames come from: camera, network stream, video, folder, recording."""
