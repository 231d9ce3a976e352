"""gunicorn --workers 4 wsgi:application               (also with --preload, --threads, --max-requests)

All workers go at once at a HUP: the pool stays if they are back within `linger` seconds, or with --preload.
"""

from model import Model

from mppool import shared_pool

models = shared_pool("models", Model, max_size=2, isolation="process", close=Model.close)


def application(environ, start_response):
    answer = models.apply(Model.predict, environ["PATH_INFO"][1:])
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [answer.encode()]
