"""flask --app flask_app run --debug

Your code is loaded anew when you save it, and the models stay: `mppool stop models` when theirs has changed.
"""

from flask import Flask
from model import Model

from mppool import shared_pool

app = Flask(__name__)
models = shared_pool("models", Model, max_size=2, close=Model.close)


@app.get("/<text>")
def predict(text):
    return models.apply(Model.predict, text)
