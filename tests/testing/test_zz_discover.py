import sys; sys.path.insert(0,"/work/main/tests/testing")
import test_index_contracts_can_fail as m
import inspect, time, pytest
from lateinteraction.testing.contracts import checks_of
def test_all(failing):
    for name, cls in vars(m).items():
        if inspect.isclass(cls) and issubclass(cls, m.Sound) and cls is not m.Rescores:
            suite=m.suite_of(cls); names=[n for n,_ in checks_of(suite)]
            t=time.time(); f=failing(suite,names)
            print(f"{name} ({len(f)}/{len(names)} {time.time()-t:.1f}s)", sorted(x[5:] for x in f))
