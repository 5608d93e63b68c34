"""The status of a running server, on its metrics listener: metrics, health and the status page.

It may import service.py and the floors below it. Begin with metrics_listener.py, which has the sockets; metrics_page.py
answers a request and status_page.py draws the page, both without sockets.
"""
