"""The server that ours is measured against: /recall, each request by itself.

python -m benchmarks.service_plain --dataset ml-100k --port 6072
"""

from __future__ import annotations

import argparse

import numpy as np


def serve_plainly(dataset: str, port: int) -> None:
    """Serve /recall with the same model: each request encodes its texts and histories and scores all items."""
    import uvicorn
    from fastapi import FastAPI

    from agents.cli.serve import recall_world
    from deeprec_env.world import load_world
    from trm.server import RecallRequest
    from trm.text_encoder import load_encoder

    globals()["RecallRequest"] = RecallRequest  # FastAPI looks annotations up there
    world = load_world(dataset)
    served = recall_world(world, "train")
    frozen = world.retriever.frozen  # type: ignore[attr-defined]
    encoder = load_encoder(frozen.encoder_name)
    app = FastAPI()

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/recall")
    async def recall(request: RecallRequest) -> dict[str, list[list[str]]]:
        histories = [served.history_of(idx) or () for idx in request.idx_list]
        queries = frozen.queries(frozen.encode_histories(histories), encoder.encode(request.preference_list))
        found = []
        for query, history in zip(queries, histories, strict=True):
            scores = frozen.item_vectors @ query
            scores[[0, *history]] = -np.inf
            found.append([served.item_texts[i] for i in np.argsort(-scores, kind="stable")[: request.k]])
        return {"item_list": found}

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)


def main() -> None:
    """Serve until it is ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--port", type=int, default=6072)
    options = parser.parse_args()
    serve_plainly(options.dataset, options.port)


if __name__ == "__main__":
    main()
