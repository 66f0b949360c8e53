"""Helper process: the second save fails because its files are too large for a limit."""

import resource
import sys

from tests.helpers.checkpoint_cases import abstract, make_state, open_run, same, save
from vidlatent.errors import VidlatentError

run = open_run(sys.argv[1])
save(run, 1)
run.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, resource.RLIM_INFINITY))
save(run, 2, make_state(2, size=1 << 14))
try:
    run.wait()
except VidlatentError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
restored = run.restore(abstract(make_state(1)))
assert same(restored.state, make_state(1))
print("sound:", restored.step)
assert list(run.directory.glob("2.*")), "the failed save left something"
save(run, 3)
run.wait()
assert not list(run.directory.glob("2.*")), "and the next one cleared it away"
print("then saved:", run.latest())
run.close()
