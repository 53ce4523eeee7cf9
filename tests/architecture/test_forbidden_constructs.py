"""Code that this library does not contain: what executes data, what swallows errors, what changes its host."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

UNSAFE_MODULES = {"cloudpickle", "cPickle", "dill", "joblib", "marshal", "pickle", "shelve"}
BANNED_CALLS = {
    "eval", "exec", "compile", "input", "breakpoint", "__import__",
    "torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load",
    "os.system", "os.popen", "os.putenv", "os.chdir", "os.environ.update", "os.environ.setdefault", "os.environ.pop",
    "logging.basicConfig", "logging.disable", "logging.captureWarnings",
    "signal.signal", "locale.setlocale", "atexit.register", "sys.setrecursionlimit",
    "warnings.filterwarnings", "warnings.simplefilter",
    "random.seed", "np.random.seed", "torch.manual_seed", "np.seterr",
    "torch.set_num_threads", "torch.set_num_interop_threads", "torch.set_default_dtype", "torch.set_default_device",
    "torch.use_deterministic_algorithms", "torch.set_grad_enabled", "torch.set_float32_matmul_precision",
    "multiprocessing.set_start_method",
}  # fmt: skip
BANNED_KEYWORDS = {"allow_pickle", "shell", "trust_remote_code"}
PERSONS_OWN = {"self.trust_remote_code", "options.trust_remote_code"}  # said by who called, never read from a file


def forbidden(path: str, tree: ast.Module) -> list[str]:
    """Each forbidden construct, with its place."""
    contained = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.With) and "warnings.catch_warnings" in ast.unparse(block.items[0])
        for node in ast.walk(block)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "warnings.simplefilter"
    }
    found = (each for node in ast.walk(tree) if id(node) not in contained for each in _in_node(path, node))
    return [f"{path}:{line} {what}" for line, what in found]


def _in_node(path: str, node: ast.AST) -> Iterator[tuple[int, str]]:
    match node:
        case ast.Import(names=names):
            yield from ((node.lineno, alias.name) for alias in names if _top(alias.name) in UNSAFE_MODULES)
        case ast.ImportFrom(module=str(module)) if _top(module) in UNSAFE_MODULES:
            yield node.lineno, module
        case ast.Call(func=function, keywords=keywords):
            name = ast.unparse(function)
            if name == "torch.load" and any(ast.unparse(each) == "weights_only=True" for each in keywords):
                return  # reads tensors and nothing else
            if name in BANNED_CALLS or (name == "print" and not path.startswith("entrypoints/")):
                yield node.lineno, f"{name}("
            for keyword in keywords:
                refused = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                if keyword.arg in BANNED_KEYWORDS and not refused and ast.unparse(keyword.value) not in PERSONS_OWN:
                    yield node.lineno, f"{keyword.arg}={ast.unparse(keyword.value)}"
        case ast.ExceptHandler(type=caught):
            caught_names = {ast.unparse(each) for each in caught.elts} if isinstance(caught, ast.Tuple) else None
            caught_names = caught_names or {"everything" if caught is None else ast.unparse(caught)}
            if broad := caught_names & {"everything", "Exception", "BaseException"}:
                yield node.lineno, f"except {broad}"
        case ast.Global(names=names):
            yield node.lineno, f"global {names}"
        case ast.Subscript(value=target, ctx=ast.Store() | ast.Del()) if ast.unparse(target) == "os.environ":
            yield node.lineno, "os.environ[…] ="


def _top(module: str) -> str:
    return module.partition(".")[0]


def test_no_module_contains_a_forbidden_construct(modules: dict[str, ast.Module]) -> None:
    assert [each for path, tree in modules.items() for each in forbidden(path, tree)] == []


@pytest.mark.parametrize(
    "planted",
    [
        "import pickle",
        "from pickle import loads",
        "from dill.source import getsource",
        "eval('1')",
        "exec(text)",
        "weights = torch.load(path)",
        "weights = torch.load(path, weights_only=False)",
        "weights = torch.load(path, weights_only=trusted)",
        "settings = yaml.load(text)",
        "array = np.load(path, allow_pickle=True)",
        "model = AutoModel.from_pretrained(name, trust_remote_code=trusted)",
        "subprocess.run(command, shell=True)",
        "try:\n    f()\nexcept Exception:\n    pass",
        "try:\n    f()\nexcept (ValueError, BaseException) as error:\n    raise",
        "try:\n    f()\nexcept:\n    pass",
        "print('done')",
        "def f():\n    global state\n    state = 1",
        "os.environ['TOKENIZERS_PARALLELISM'] = 'false'",
        "del os.environ['X']",
        "logging.basicConfig()",
        "torch.set_num_threads(1)",
        "warnings.simplefilter('ignore')",
    ],
)
def test_a_planted_construct_is_seen(planted: str) -> None:
    assert len(forbidden("adapters/flat.py", ast.parse(planted))) == 1


@pytest.mark.parametrize(
    "harmless",
    [
        "try:\n    f()\nexcept ValueError:\n    pass",
        "np.load(path, allow_pickle=False)",
        "torch.load(path, weights_only=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=False)",
        "level = os.environ['LEVEL']",
        "model.eval()",
        "re.compile('a')",
        "with warnings.catch_warnings():\n    warnings.simplefilter('ignore')",
    ],
)
def test_harmless_code_is_left_alone(harmless: str) -> None:
    assert forbidden("adapters/flat.py", ast.parse(harmless)) == []


def test_only_entrypoints_may_print() -> None:
    assert forbidden("entrypoints/cli/__init__.py", ast.parse("print('done')")) == []
