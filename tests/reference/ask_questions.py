"""How many of the questions over the sample pictures, clips and sentences a running server answers rightly.

    sensorium serve &  # the default pack
    $SENSORIUM_TEST_PYTHON tests/reference/ask_questions.py [host:port]

An answer is right if it holds a word of each list of `questions.json`. Prints each answer, what it was written from, and
the share that is right.
"""

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton

HERE = Path(__file__).parent
SAMPLES = Path(os.environ.get("SENSORIUM_SAMPLES", Path.home() / ".cache/sensorium/samples"))


def main() -> None:
    client = triton.InferenceServerClient(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8001")
    questions = json.loads((HERE / "questions.json").read_text())["questions"]
    right = 0
    for asked in questions:
        told = ask(client, asked)
        answer = told["answer"]["text"]
        said = re.findall(r"[a-z0-9]+", answer.lower())
        good = all(any(word in said for word in alternatives) for alternatives in asked["words"])
        right += good
        senses = "+".join(part for part in ("text", "image", "audio") if part in asked)
        used = "+".join(told["answer"].get("evidence", []))
        print(f"{'right' if good else 'WRONG'}  {senses} ({used})  {asked['question']}  {answer.strip()}")
    print(f"{right} of {len(questions)}, {100 * right / len(questions):.0f} %")


def ask(client: triton.InferenceServerClient, asked: dict) -> dict:
    """The report on one question."""
    content = {
        "text": asked.get("text", "").encode(),
        "image": (SAMPLES / "images" / asked["image"]).read_bytes() if "image" in asked else b"",
        "audio": clip(asked["audio"]) if "audio" in asked else b"",
    }
    inputs = []
    for name in (name for name in content if name in asked):
        tensor = triton.InferInput(name, [1], "BYTES")
        tensor.set_data_from_numpy(np.array([content[name]], dtype=object))
        inputs.append(tensor)
    outputs = [triton.InferRequestedOutput("report")]
    answer = client.infer("understand", inputs, outputs=outputs, parameters={"question": asked["question"]})
    return json.loads(answer.as_numpy("report")[0])


def clip(number: str) -> bytes:
    """A clip of the samples, by the number at its end."""
    return (SAMPLES / "speech" / f"sense_and_sensibility_01_austen_64kb-{number}.wav").read_bytes()


if __name__ == "__main__":
    main()
