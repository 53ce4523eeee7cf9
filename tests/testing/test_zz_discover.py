import sys, inspect, time, importlib
sys.path.insert(0,"/work/main/tests/testing")
from lateinteraction.testing.contracts import checks_of
def test_all(failing):
    m=importlib.import_module("test_encoder_contracts_can_fail")
    for name, cls in list(vars(m).items()):
        if inspect.isclass(cls) and issubclass(cls, m.Sound):
            suite=m.suite_of(cls); names=[n for n,_ in checks_of(suite)]
            t=time.time(); f=failing(suite,names)
            print(f"{name} ({len(f)}/{len(names)} {time.time()-t:.1f}s)", sorted(x[5:] for x in f))
