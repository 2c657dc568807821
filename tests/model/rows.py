"""Bytes of the CSV: rows are `<token:name>`, foreign lines `<name>`, each with a line end."""


def overwrite(image, offset, data, fill):
    """Writes into a list, and fills what lies between its end and the offset."""
    image.extend([fill] * (offset - len(image)))
    image[offset : offset + len(data)] = data


def lines(data):
    """The whole lines, and the rest without a line end."""
    parts = bytes(data).split(b"\n")
    return [part + b"\n" for part in parts[:-1]], parts[-1]


def is_whole(line):
    return len(line) >= 3 and line[:1] == b"<" and line[-2:] == b">\n" and line.count(b"<") == 1 and b"\0" not in line


def is_foreign(line):
    return is_whole(line) and b":" not in line


def row_of(token, name):
    return b"<%d:%s>\n" % (token, name)


def rows(data):
    """(token, name) of each row."""
    found = []
    for line in lines(data)[0]:
        if is_whole(line) and b":" in line:
            token, name = line[1:-2].split(b":")
            found.append((int(token), name))
    return found
