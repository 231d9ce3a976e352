"""For a notebook, a script, `python -i`: those that run at the same time share two models."""

from model import Model

from mppool import shared_pool

models = shared_pool("models", Model, max_size=2, close=Model.close)

with models.lease() as model:
    print(model.predict("hello"))
