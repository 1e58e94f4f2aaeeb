"""TorchScript modules without PyTorch: an archive as `torch.jit.save` writes it, of a module without parameters.

The format is a ZIP of stored files below one folder: `data.pkl`, the module object as a pickle that names its class;
`code/__torch__.py`, the class in TorchScript; `constants.pkl`, a tuple; and `version`.
"""

import zipfile
from pathlib import Path

HEADER = """class Model(Module):
  __parameters__ = []
  __buffers__ = []
  training : bool
"""
#: Protocol 2: the class, an empty tuple of arguments, NEWOBJ, {"training": False}, BUILD.
OBJECT = b"\x80\x02c__torch__\nModel\n)\x81}X\x08\x00\x00\x00training\x89sb."
EMPTY_TUPLE = b"\x80\x02)."


def save(path: Path, methods: str) -> None:
    """Writes a module whose methods are given as TorchScript, indented by two."""
    files = {
        "data.pkl": OBJECT,
        "code/__torch__.py": (HEADER + methods).encode(),
        "constants.pkl": EMPTY_TUPLE,
        "version": b"3\n",
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for file, content in files.items():
            archive.writestr(f"{path.stem}/{file}", content)


MANIFEST = """
name = "{name}"
modality = "text"
engine = "torchscript"
pipeline = "tensor"
inputs = [{inputs}]
outputs = [{outputs}]
replicas = {{ device = "cpu" }}
batching = {{ max_batch_size = 8 }}
"""


def tensors(named: dict[str, str], width: int = 16) -> str:
    """Rows of so many elements, by name and datatype."""
    described = (
        f'{{ name = "{name}", datatype = "{datatype}", shape = [-1, {width}] }}' for name, datatype in named.items()
    )
    return ", ".join(described)


def model(repository: Path, name: str, methods: str, inputs: dict[str, str], outputs: dict[str, str]) -> None:
    """Lays a model of one version into a repository."""
    (repository / name / "1").mkdir(parents=True)
    text = MANIFEST.format(name=name, inputs=tensors(inputs), outputs=tensors(outputs))
    (repository / name / "model.toml").write_text(text)
    save(repository / name / "1/model.pt", methods)


#: Of which libtorch has tensors.
DATATYPES = "BOOL UINT8 UINT16 UINT32 UINT64 INT8 INT16 INT32 INT64 FP16 BF16 FP32 FP64".split()

#: What Triton's examples ask: the sums and the differences of two rows of 16 integers.
ADD_AND_SUBTRACT = """
  def forward(self: __torch__.Model, INPUT0: Tensor, INPUT1: Tensor) -> Tuple[Tensor, Tensor]:
    return (torch.add(INPUT0, INPUT1), torch.sub(INPUT0, INPUT1))
"""

#: Gives back what it is given.
SAME = """
  def forward(self: __torch__.Model, INPUT0: Tensor) -> Tensor:
    return torch.clone(INPUT0)
"""


def simple(repository: Path, name: str = "simple") -> None:
    """Triton's `simple`."""
    integers = "INT32"
    inputs, outputs = {"INPUT0": integers, "INPUT1": integers}, {"OUTPUT0": integers, "OUTPUT1": integers}
    model(repository, name, ADD_AND_SUBTRACT, inputs, outputs)


def same(repository: Path, datatype: str) -> str:
    """A model of one datatype; gives its name."""
    name = f"same-{datatype.lower()}"
    model(repository, name, SAME, {"INPUT0": datatype}, {"OUTPUT0": datatype})
    return name
