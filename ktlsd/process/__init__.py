"""The life of the service: start, sockets, privileges, workers, reload, systemd.

It may import server.py and the floors below it. Begin with serve.py, which starts the service; workers.py has the
parent of several processes, reload.py reloads a running process.
"""
