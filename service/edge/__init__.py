"""Sockets, connections and uvicorn: everything before a request has a route."""
