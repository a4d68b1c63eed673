"""Keeps pytest off the locustfile: importing Locust patches sockets for the whole process."""

collect_ignore = ["locustfile.py"]
