"""A reward in a process of its own: what goes over the wire, the queue of images, and the HTTP server in front of it."""
