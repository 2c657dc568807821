"""Bytes of the CSV: rows are `<token:name>`, foreign lines `<name>`, each with a line end, LF or CRLF."""


def overwrite(image, offset, data, fill):
    """Writes into a list, and fills what lies between its end and the offset."""
    image.extend([fill] * (offset - len(image)))
    image[offset : offset + len(data)] = data


def lines(data):
    """The whole lines, and the rest without a line end."""
    parts = bytes(data).split(b"\n")
    return [part + b"\n" for part in parts[:-1]], parts[-1]


def text_of(line):
    """A line without its line end."""
    return line.rstrip(b"\r\n")


def is_whole(line):
    text = line[:-2] if line[-2:] == b"\r\n" else line[:-1]
    return len(text) >= 2 and line[-1:] == b"\n" and text[:1] == b"<" and text[-1:] == b">" and text.count(b"<") == 1 and b"\0" not in text


def is_foreign(line):
    """A line that a rebuild keeps. One with a comma has another width than all rows."""
    return is_whole(line) and b":" not in line and b"," not in line


def row_of(token, name, line_end=b"\n"):
    return b"<%d:%s>%s" % (token, name, line_end)


def rows(data):
    """(token, name) of each row."""
    found = []
    for line in lines(data)[0]:
        if is_whole(line) and b":" in line:
            token, name = text_of(line)[1:-1].split(b":")
            found.append((int(token), name))
    return found
