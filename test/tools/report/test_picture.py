"""The overview picture: its title fits whatever there is to say."""

from come_ros.tools.report.picture import SEPARATOR, wrapped


def test_a_long_title_goes_on_in_the_next_line_and_loses_nothing() -> None:
    parts = [f"figure {i} {'x' * (5 * i)}" for i in range(8)]
    title = "come_ros\n" + SEPARATOR.join(parts)
    lines = wrapped(title, 60).splitlines()
    assert lines[0] == "come_ros" and len(lines) > 3
    assert SEPARATOR.join(lines[1:]).split(SEPARATOR) == parts
    assert all(len(line) <= 60 or SEPARATOR not in line for line in lines)
    assert wrapped(title, 1000) == title
