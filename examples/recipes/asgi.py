"""uvicorn --workers 3 asgi:app"""

from fastapi import FastAPI
from model import Model

from mppool import shared_pool

app = FastAPI()
models = shared_pool("models", Model, max_size=2, close=Model.close)


@app.get("/{text}")
def predict(text: str) -> str:  # not `async def`: FastAPI calls it in a thread, where it may wait
    return models.apply(Model.predict, text)
