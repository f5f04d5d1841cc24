"""Names, limits and settings that the bundle, its readers and the device runners share."""

from __future__ import annotations

SCHEMA_VERSION = 4
SCHEMA_MINOR = 0
"""Of manifest.json: readers refuse a larger version, and ignore unknown keys of a larger minor version."""
STATES_VERSION = 2
"""The version of a manifest whose decoder has states, or layers without keys and values; all others are written as 1."""
ENCODER_VERSION = 3
"""The version of a manifest whose decoder reads an encoder, a bundle in the directory ``encoder``."""
PICTURES_VERSION = 4
"""The version of a manifest whose model reads pictures or sound, as a bundle in the directory ``encoder`` does for it."""
STATE_TYPES = ("float",)
STATE_KINDS = ("replaced",)
"""How a state of a decoder changes: ``replaced`` has one size, is zeros at first, and each call gives a new one; nothing rewinds it."""
TEXT_TO_TEXT = "text2text-generation"
SPEECH_TO_TEXT = "automatic-speech-recognition"
CROSS_TASKS = (TEXT_TO_TEXT, SPEECH_TO_TEXT)
"""Tasks of an encoder whose keys and values its decoder reads."""
PICTURES_TO_TEXT = "image-text-to-text"
ENCODED = (*CROSS_TASKS, PICTURES_TO_TEXT)
"""Tasks of two graphs, an encoder and a decoder."""
DECODERS = ("text-generation", *ENCODED)
"""Tasks of models that answer token by token."""
TASKS = (*DECODERS, "feature-extraction", "image-classification", "generic")
REAL_INPUT = ("text", "sample")
VECTOR_KINDS = (*REAL_INPUT, "random")
"""What a golden input is; random input proves less and is never called a pass."""

LABELS = "labels"
"""The array of an .npz, or column of a data set, that says which class each sample is of."""

MANIFEST = "manifest.json"
GRAPH = "model.onnx"
DATA = "model.onnx.data"
ENCODER = "encoder"
"""Directory of the encoder that a decoder reads, a bundle of its own; begins the names of arrays for it in golden vectors."""
BEFORE = "before.input_ids"
"""The array of a golden vector with tokens, a picture's among them, that its text goes on."""
CROSS_MASK = "encoder_attention_mask"
FEATURES = "image_features"
"""Output of an encoder of pictures, input of its decoder: rows that take the places of a token's embeddings."""
PICTURE_FITS = ("crop", "stretch", "tiles")
"""How a picture becomes views of one size: its middle, all of it squeezed, or cut into tiles and squeezed too."""
RESAMPLINGS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Filters of resizing, in Pillow's order."""
SOUND = "input_values"
"""What an encoder of speech reads: float32 [B, samples] from -1 to 1, of one channel."""
RATES = range(1000, 768_001)
"""Samples a second that sound may have."""
SHORTEST_SOUND = 0.1
"""Seconds; the three convolutions with which Moonshine begins need .056."""
VECTORS = "vectors"
"""Directory of the golden vectors."""
OPERATORS = "ops"
"""Directory of the operator libraries, one directory an ABI."""

EDGEKIT = "ai.edgekit"
MICROSOFT = "com.microsoft"
TERNARY_MATMUL = "TernaryMatMul"
INT8_MATMUL = "Int8MatMul"
SPARSE_MATMUL = "SparseMatMul"
INT4_MATMUL = "Int4MatMul"
INT8_BLOCK_MATMUL = "Int8BlockMatMul"
EXPERT_MATMUL = "ExpertMatMul"
CACHED_ATTENTION = "CachedAttention"
BLOCK_OPERATORS = (INT4_MATMUL, INT8_BLOCK_MATMUL)
"""Those whose weights have a scale for each block, of any size that MatMulNBits has."""
NATIVE_OPERATORS = (TERNARY_MATMUL, INT8_MATMUL, SPARSE_MATMUL, *BLOCK_OPERATORS, EXPERT_MATMUL, CACHED_ATTENTION)
"""Operators of the domain ``ai.edgekit`` that bundles hold."""
OPTIONAL_OPERATORS = (*BLOCK_OPERATORS, EXPERT_MATMUL, CACHED_ATTENTION)
"""Those that a library may lack: their function body is what a stock graph would hold, and rounds alike."""
GROUP_QUERY_ATTENTION = "GroupQueryAttention"
FUSED_MATMUL = "FusedMatMul"
MATMUL_NBITS = "MatMulNBits"
GATHER_QUANTIZED = "GatherBlockQuantized"

LARGEST_MANIFEST = 64 << 20
"""Bytes."""
LARGEST_GRAPH = 256 << 20
"""Bytes of model.onnx; weights belong into the data file."""
DECODER_LIMITS = {"kv_heads": 4096, "head_dim": 65_536, "vocab_size": 1 << 27, "max_length": 1 << 27}
"""The largest numbers that a manifest's decoder may hold: buffers are allocated by them."""
LARGEST_VIEW = 4096
"""Pixels a side of a view of a picture, and of a picture before it is cut into views, at most."""
MOST_TILES = 32
"""Tiles a side of a picture at most."""
LONGEST_MARK = 256
"""Characters of a text that stands for a picture or a view of one at most."""
LARGEST_SCALE = 1e6
"""Of what pixels are multiplied by, less and divided by, and of one over the last."""
LARGEST_STATE = 1 << 27
"""Numbers in a row of a decoder's state at most."""

OLDEST_RUNTIME = (1, 28)
"""The oldest ONNX Runtime whose 2-bit MatMulNBits is fast; older ones fall off a cliff silently."""
SPIN_MICROSECONDS = 50
"""How long an idle worker stays awake: as fast as for ever, and kind to a busy neighbour (docs/benchmarking.md)."""
PROMPT_PIECE = 128
"""Tokens of a prompt fed at once: more are not faster, and the memory between layers grows with them."""
REPLAY_PIECE = 64
"""Tokens of a golden text fed at once; a whole text's logits would be hundreds of megabytes."""
ROUND_SECONDS = 0.3
"""A benchmark repeats a phase for about this long in each round: short runs need many to be timed well."""
ROUND_RUNS = 200
"""Repetitions of a phase in a round at most."""
ROUNDS = 5
"""Rounds of a benchmark unless more are asked for; fewer are too few to be quoted."""
BENCH_PROMPT, BENCH_NEW = 128, 64
"""Tokens of a benchmark's prefill, and decoded after it, unless others are asked for."""
NEW_TOKENS = 256
"""Tokens that are generated at most unless more are asked for."""
WINDOW = 512
"""Tokens of context of a perplexity at most; windows do not overlap."""
TEXT_TOKENS = 16 * WINDOW
"""Tokens of a text that perplexity is measured on: enough to within a few percent; a longer text is cut."""

STORAGE = "edgekit.storage"
"""Key in a tensor's ``meta``: tensors with equal values there are the same bytes, perhaps in another shape."""
