"""Keeps pytest from importing the locustfile: Locust patches sockets for the whole process."""

collect_ignore = ["locustfile.py"]
