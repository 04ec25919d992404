"""Where packets are transformed: ESP and AH, the software engine, and the host's network around it."""
