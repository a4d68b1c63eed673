"""Sockets, connections and uvicorn: all that comes before a request has a route."""
