"""The layers of the package, as tests/test_architecture.py requires them: imports go down."""

from __future__ import annotations

# A module imports only from lower layers.
LAYER = {
    "errors": 0,
    "display": 0,
    "optional": 1,
    "parts": 1,
    "runtime": 1,
    "model": 2,
    "backends": 3,
    "weights": 4,
    "data": 4,
    "evaluation": 5,
    "inference": 5,
    "explain": 5,
    "training": 6,
    "classifier": 6,
    "report": 7,
    "bench": 7,
    "api": 8,
    "study": 8,
    "serve": 8,
    "cli": 9,
    "__init__": 10,  # the facade: no module imports it
    "__main__": 10,
}

# Inside a package a file imports only from files before it. A package's __init__ comes after all of them.
ORDER = {
    "model": [
        "mode", "network", "variants", "alternatives", "embedding", "watch", "attention", "block", "cait",
        "wrappers", "trace", "ablation_init",
        "ablation", "convnet", "networks",
    ],
    "backends": ["exact", "reference", "operators", "native", "heads", "products", "layers", "branches", "lean"],
    "runtime": [
        "state", "messages", "signals", "environment", "flops", "processes", "device", "files", "compiler", "claim",
        "lettering",
    ],
    "weights": [
        "published", "nests", "layouts", "crc32c", "tensor_bundle", "keras", "hub", "reshape", "adapt",
        "timm_layout", "foreign", "artefact", "registry", "own", "hints", "imagenet", "spec", "create", "verification",
        "outgoing", "push", "card", "teachers",
    ],
    "data": [
        "samples", "png", "jpeg", "formats", "depth", "image", "inputs", "fetch", "listing", "labels", "columns",
        "source", "folder", "resample", "preprocessing", "snippet", "shards", "members", "table", "own", "stored",
        "split", "record", "manifest", "image_table", "parquet", "arrow", "zipped", "tar", "cifar", "matlab",
        "imagenet", "benchmarks", "spec", "holding", "pairing", "roles", "writing", "plausible", "faults", "workers",
        "dataset", "seeding", "order", "slide", "erasing", "policies", "augment", "mixing", "shrunk", "loader",
        "duplicates", "findings", "sides", "fix_list", "looking", "layout", "doctor",
    ],
    "training": [
        "schedule", "losses", "strict", "aliases", "best", "settings", "recipe", "keys", "own", "compute", "footprint",
        "muon", "optimizer", "average", "checkpoint", "lora", "journal", "prolong", "places", "data", "start", "notes",
        "teacher", "record", "resume", "trackers", "sound", "step", "estimate", "guard", "events", "validation",
        "watch", "skips", "run_folder", "ready", "plan", "job", "trainer", "run",
    ],
    "evaluation": [
        "intervals", "counts", "records", "compare", "metrics", "classes", "masks", "protocols", "measure",
        "batches", "expected", "safeguards", "evaluate", "plots", "tables",
    ],
    "inference": [
        "linear", "blocks", "native", "foldable", "fold", "graph", "precision", "engines", "flip", "export", "tuned",
        "predictions",
    ],
    "explain": [
        "colours", "canvas", "maps", "attribution", "faithfulness", "drawing", "explanation", "markup", "gallery",
        "layers", "figures", "folder", "writer",
    ],
    "report": ["intervals", "record", "results", "charts", "parts", "page", "compare", "several"],
    "bench": [
        "peers", "clock", "page", "data", "limit", "memory", "work", "engine_page", "inference", "precisions", "tune",
        "activations", "train", "cost", "plots", "gpu_clock", "gpu",
    ],
    "study": ["grid", "plan", "outcome", "table", "plot", "run"],
    "serve": [
        "limits", "refusal", "cors", "counters", "upload", "openapi", "pipeline", "pages", "app", "protocol", "run",
    ],
    "cli": [
        "exits", "console", "usage", "options", "images", "tables", "places", "engine", "main", "models", "info",
        "recipes", "doctor", "split", "eval", "predict", "explain", "report", "train", "bench", "study", "serve",
        "export", "push", "help", "demo",
    ],
}  # fmt: skip

# Names of parameters that no function has, and what to do instead.
PASSED_THROUGH = {
    "evaluate": "import deepcait.evaluation",
    **dict.fromkeys(("say", "tell", "warn"), "use logging.getLogger(__name__), or the module warnings"),
}
# The functions that may import from any layer, at their first call: module, name, what they may import.
LAZY = {("model.cait", "set_backend"): "backends"}
