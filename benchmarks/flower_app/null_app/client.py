"""A Flower client that answers with the model and something added.

The sum differs in every chunk of every reply: equal chunks would travel once.
"""

import random

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()  # type: ignore[untyped-decorator]
def train(message: Message, _context: Context) -> Message:
    """Add one random number to every value."""
    [values] = message.content["arrays"].to_numpy_ndarrays()
    changed = values + np.float32(random.random())
    content = {
        "arrays": ArrayRecord([changed]),
        "metrics": MetricRecord({"num-examples": 1}),
    }
    return Message(content=RecordDict(content), reply_to=message)
