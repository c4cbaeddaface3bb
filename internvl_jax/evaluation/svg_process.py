"""A process that draws one SVG and may be ended: UTF-8 on stdin, PNG on stdout, a sentence on stderr.

Run as a script, so that nothing of this project is imported. Its arguments: a folder of fonts, pixels of the longest
side, seconds of a processor, bytes of memory. Exit code 3: it is no SVG that can be drawn.
"""

import sys


def main(fonts: str, side: int, seconds: int, memory: int) -> None:
    """Draws on white, in its own proportions. fonts: the folder of DejaVu's files."""
    import resource  # which not every system has

    import resvg_py

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    text = sys.stdin.buffer.read().decode()
    try:
        drawn = resvg_py.svg_to_bytes(
            svg_string=text,
            width=side,
            height=side,
            background="#ffffff",
            # Whatever fonts a drawing names, these are taken: so text looks the same on every machine.
            skip_system_fonts=True,
            font_dirs=[fonts],
            font_family="DejaVu Sans",
            sans_serif_family="DejaVu Sans",
            serif_family="DejaVu Serif",
            monospace_family="DejaVu Sans Mono",
        )
    except ValueError as error:
        print(error, file=sys.stderr)
        sys.exit(3)
    sys.stdout.buffer.write(drawn)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
