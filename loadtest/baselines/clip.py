"""A clip of so many seconds out of shorter ones: clip.py OUT.wav SECONDS IN.wav...

The inputs follow each other and are cut at the end. Needs nothing but Python.
"""

import sys
import wave

out, seconds, inputs = sys.argv[1], float(sys.argv[2]), sys.argv[3:]
frames, form = b"", None
for path in inputs:
    with wave.open(path) as clip:
        this = (clip.getnchannels(), clip.getsampwidth(), clip.getframerate())
        if form not in (None, this):
            sys.exit(f"{path} is {this}, the clips before it are {form}")
        form = this
        frames += clip.readframes(clip.getnframes())
channels, width, rate = form
length = int(seconds * rate) * channels * width
if len(frames) < length:
    sys.exit(f"the inputs have {len(frames) / (channels * width * rate):.1f} seconds, expected {seconds}")
with wave.open(out, "wb") as clip:
    clip.setparams((channels, width, rate, 0, "NONE", "not compressed"))
    clip.writeframes(frames[:length])
print(out)
