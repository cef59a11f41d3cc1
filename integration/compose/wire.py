"""What went over the wire, from tcpdump's file: each TCP connection, and whether it was TLS and nothing else.

The file format is pcap with the link type of `-i any`. Source: tcpdump.org, pcap-savefile(5), LINKTYPE_LINUX_SLL and
LINKTYPE_LINUX_SLL2; RFC 8446, 4.1.2 and 5.1, for TLS.
"""

import ipaddress
import struct
from dataclasses import dataclass, field

SYN, ACK = 0x02, 0x10
IPV4, IPV6, TCP = 0x0800, 0x86DD, 6
# Behind which link types what protocol begins where: (of the protocol's number, of the packet).
LINKS = {113: (14, 16), 276: (0, 20)}
# A connection to such a port is a mark in the capture, by which its parts are told apart.
MARKS = range(7000, 8000)
# What a plain request would have in it, wherever in a connection it stood.
PLAIN_WORDS = (b"HTTP/1.", b"Host:", b"host:", b"/politics", b"PRI * HTTP/2")


@dataclass
class Segment:
    """A TCP segment."""

    source: tuple
    target: tuple
    flags: int
    sequence: int
    payload: bytes


@dataclass
class Connection:
    """A TCP connection, with what each side said, by its place in the stream."""

    client: tuple
    server: tuple
    complete: bool
    starts: dict = field(default_factory=dict)
    said: dict = field(default_factory=dict)
    heard_at: list = field(default_factory=list)

    def add(self, number, segment):
        """Takes a segment of either side."""
        first = (segment.sequence + 1) % 2**32 if segment.flags & SYN else segment.sequence
        start = self.starts.setdefault(segment.source, first)
        if segment.payload or segment.flags & SYN:
            self.heard_at.append(number)
        if segment.payload:
            place = (segment.sequence - start) % 2**32
            said = self.said.setdefault(segment.source, {})
            if len(segment.payload) > len(said.get(place, b"")):
                said[place] = segment.payload

    def stream(self, side):
        """What a side said, up to the first gap, and whether there is one."""
        stream = b""
        for place, payload in sorted(self.said.get(side, {}).items()):
            if place > len(stream):
                return stream, True
            stream += payload[len(stream) - place :]
        return stream, False

    def words(self):
        """The first plain words of a request that either side said."""
        payloads = [payload for said in self.said.values() for payload in said.values()]
        return next((word for word in PLAIN_WORDS if any(word in payload for payload in payloads)), None)

    def told(self):
        """A line for it: TLS with its SNI, or else what could be read."""
        asked, gap = self.stream(self.client)
        answered, other_gap = self.stream(self.server)
        if not self.complete or gap or other_gap:
            return f"NOT WHOLLY SEEN, {'a part' if self.complete else 'its beginning'} is missing"
        if not asked and not answered:
            return "a connection, and not a word"
        hello = client_hello(asked)
        if hello is None or not is_tls(asked) or not is_tls(answered) or self.words():
            return f"IN PLAIN TEXT {asked.split(bytes([13]), 1)[0][:80].decode(errors='backslashreplace')}"
        return f"TLS, SNI {hello or '-'}"


def is_tls(stream):
    """Whether it is TLS records from the first byte on; the last one may not have ended yet."""
    while len(stream) >= 5:
        kind, major, minor, length = struct.unpack("!BBBH", stream[:5])
        if kind not in range(20, 25) or major != 3 or minor > 4 or length > 2**14 + 2048:
            return False
        stream = stream[5 + length :]
    return True


def client_hello(stream):
    """The SNI of the ClientHello that it begins with, empty without one; None where it begins with something else."""
    if len(stream) < 6 or stream[0] != 22 or stream[5] != 1:
        return None
    try:
        at = 5 + 4 + 2 + 32  # past the record, the message, the version and the random
        at += 1 + stream[at]  # session
        at += 2 + struct.unpack_from("!H", stream, at)[0]  # cipher suites
        at += 1 + stream[at]  # compression
        end = at + 2 + struct.unpack_from("!H", stream, at)[0]
        at += 2
        while at < end:
            kind, length = struct.unpack_from("!HH", stream, at)
            if kind == 0:  # its list has one name: two lengths and the type stand before it
                return stream[at + 9 : at + 4 + length].decode("ascii")
            at += 4 + length
        return ""
    except (struct.error, IndexError, UnicodeDecodeError):
        return None


def segments(data):
    """The TCP segments of a capture in the order of their times; what is being written at its end is left out."""
    return [segment for _, segment in sorted(timed_segments(data), key=lambda timed: timed[0])]


def timed_segments(data):
    """Each segment with its time. Two processors may write their packets the wrong way round."""
    if len(data) < 24:
        return
    order = {b"\xd4\xc3\xb2\xa1": "<", b"\xa1\xb2\xc3\xd4": ">"}.get(data[:4])
    link = order and struct.unpack_from(order + "I", data, 20)[0]
    if link not in LINKS:
        raise ValueError(f"no capture of all interfaces: {data[:24].hex()}")
    protocol_at, packet_at = LINKS[link]
    at, number = 24, 0
    while at + 16 <= len(data):
        seconds, fraction, kept, length = struct.unpack_from(order + "IIII", data, at)
        frame = data[at + 16 : at + 16 + kept]
        if len(frame) < kept:
            return
        at, number = at + 16 + kept, number + 1
        protocol = struct.unpack_from("!H", frame, protocol_at)[0]
        if kept < length or protocol == IPV6:
            raise ValueError(f"packet {number} cannot be read: cut off, or IPv6")
        packet = frame[packet_at:]
        if protocol != IPV4 or packet[9] != TCP:
            continue
        total = struct.unpack_from("!H", packet, 2)[0]
        ip_length = (packet[0] & 15) * 4
        tcp = packet[ip_length:total]
        source_port, target_port, sequence, _, offset, flags = struct.unpack_from("!HHIIBB", tcp)
        source, target = (str(ipaddress.ip_address(packet[place : place + 4])) for place in (12, 16))
        payload = tcp[(offset >> 4) * 4 :]
        yield (
            (seconds, fraction),
            Segment((source, source_port), (target, target_port), flags, sequence, payload),
        )


class Wire:
    """A capture in Envoy's network namespace, without what the application and Envoy say to each other."""

    def __init__(self, data, inside):
        """`inside` is the application's network."""
        self.connections = []
        self.marks = {}
        private = [ipaddress.ip_network(inside), ipaddress.ip_network("127.0.0.0/8")]
        current = {}
        for number, segment in enumerate(segments(data)):
            begins = segment.flags & (SYN | ACK) == SYN
            if begins and segment.target[1] in MARKS:
                self.marks.setdefault(segment.target[1], number)
                continue
            ends = [ipaddress.ip_address(address) for address, _ in (segment.source, segment.target)]
            if any(all(end in network for end in ends) for network in private):
                continue
            key = frozenset((segment.source, segment.target))
            again = key in current and current[key].starts.get(segment.source) == (segment.sequence + 1) % 2**32
            if key not in current or (begins and not again):
                current[key] = Connection(segment.source, segment.target, complete=begins)
                self.connections.append(current[key])
            current[key].add(number, segment)

    def lines(self, after, before, names):
        """A line for each way in which servers were spoken to between two marks, by the names of their addresses."""
        first, last = self.marks[after], self.marks[before]
        lines = []
        for connection in self.connections:
            if any(first < number < last for number in connection.heard_at):
                address, port = connection.server
                line = f"{names.get(address, address)}:{port} {connection.told()}"
                if line not in lines:
                    lines.append(line)
        return lines
