"""The host around the data plane: the TUN device, sockets for ESP, routes and the packet filter."""
