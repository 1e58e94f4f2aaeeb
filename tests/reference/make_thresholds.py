"""Thresholds of the consistency verdicts, from pairs that belong together and pairs that do not.

    sensorium serve &  # the default pack
    $SENSORIUM_TEST_PYTHON tests/reference/make_thresholds.py [host:port]

Asks the running server for the cosine of every sentence of understanding_pairs.json with every picture and clip of the
samples. Two cosines matter: the one that 5 % of the pairs that do not belong together reach, and the one that 5 % of
those that do belong together stay below. From the higher on a pair agrees, below the lower it conflicts, and between
them nothing can be said. Prints both, and what they catch, as JSON.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton

HERE = Path(__file__).parent
SAMPLES = Path(os.environ.get("SENSORIUM_SAMPLES", Path.home() / ".cache/sensorium/samples"))


def embedding(client: triton.InferenceServerClient, name: str, content: bytes) -> np.ndarray:
    """Where one part stands in the shared space."""
    tensor = triton.InferInput(name, [1], "BYTES")
    tensor.set_data_from_numpy(np.array([content], dtype=object))
    outputs = [triton.InferRequestedOutput("embedding")]
    answer = client.infer("understand", [tensor], outputs=outputs, parameters={"no_answer": True})
    return answer.as_numpy("embedding")[0]


def thresholds(together: list[float], apart: list[float]) -> dict[str, float]:
    """The 95th percentile of strangers and the 5th of friends, and what they catch."""
    conflict, agree = sorted((float(np.quantile(apart, 0.95)), float(np.quantile(together, 0.05))))
    return {
        "agree": round(agree, 2),
        "conflict": round(conflict, 2),
        "pairs_together": len(together),
        "pairs_apart": len(apart),
        "together_that_agree": round(float(np.mean(np.array(together) >= agree)), 2),
        "apart_that_agree": round(float(np.mean(np.array(apart) >= agree)), 2),
        "apart_that_conflict": round(float(np.mean(np.array(apart) < conflict)), 2),
        "together_that_conflict": round(float(np.mean(np.array(together) < conflict)), 2),
    }


def main() -> None:
    client = triton.InferenceServerClient(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8001")
    pairs = json.loads((HERE / "understanding_pairs.json").read_text())
    sentences = {s for group in ("images", "clips") for texts in pairs[group].values() for s in texts}
    texts = {s: embedding(client, "text", s.encode()) for s in [*sentences, *pairs["elsewhere"]]}
    found = {}
    for kind, group, part, folder in (("text_image", "images", "image", "images"), ("text_audio", "clips", "audio", "speech")):
        together, apart = [], []
        for name, own in pairs[group].items():
            place = embedding(client, part, (SAMPLES / folder / name).read_bytes())
            # sentences about the other clips are of the same book: strangers come from elsewhere
            strangers = pairs["elsewhere"] if group == "clips" else [t for t in texts if t not in own]
            together += [float(place @ texts[text]) for text in own]
            apart += [float(place @ texts[text]) for text in strangers]
        found[kind] = thresholds(together, apart)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
