import errno

import pytest

from service.edge.descriptors import DescriptorWatch
from tests.support.fakes import FakeClock
from tests.support.faults import refused


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_a_shortage_is_counted_at_every_look_and_logged_once_a_minute(
    number: int, caplog: pytest.LogCaptureFixture
) -> None:
    clock, looks = FakeClock(), []
    watch = DescriptorWatch(lambda: looks.append(1), clock)
    watch.look()
    assert not looks
    with refused("os.open", number):
        for _ in range(3):
            watch.look()
        assert (len(looks), len(caplog.records)) == (3, 1)
        clock.advance(60)
        watch.look()
        assert (len(looks), len(caplog.records)) == (4, 2)
    assert "raise the limit of open files" in caplog.text
    watch.look()
    assert len(looks) == 4


def test_another_error_is_the_background_s_to_report() -> None:
    watch = DescriptorWatch(lambda: None)
    with refused("os.open", errno.EACCES), pytest.raises(PermissionError):
        watch.look()
