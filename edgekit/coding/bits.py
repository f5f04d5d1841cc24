"""Bytes and bits, read with every length checked before it is used.

Readers raise ValueError with what was wrong; who knows the file and the chunk makes a BundleError of it.
"""

from __future__ import annotations


class Reader:
    """Takes numbers and pieces off a buffer, front to back."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        """Bytes not taken yet."""
        return len(self._data) - self._at

    def take(self, count: int) -> memoryview:
        """The next ``count`` bytes."""
        if count > self.left:
            raise ValueError(f"{count:,} bytes expected, {self.left:,} are left")
        self._at += count
        return self._data[self._at - count : self._at]

    def byte(self) -> int:
        """The next byte."""
        return self.take(1)[0]

    def number(self, most: int) -> int:
        """An unsigned LEB128 number of at most five bytes that is not above ``most``."""
        value = 0
        for shift in range(0, 35, 7):
            byte = self.byte()
            value |= (byte & 127) << shift
            if byte < 128:
                break
        else:
            raise ValueError("a number has more than five bytes")
        if value > most:
            raise ValueError(f"{value:,} where at most {most:,} can be")
        return value


def number(value: int) -> bytes:
    """``value`` as unsigned LEB128: seven bits a byte, the lowest first, the top bit set where more follow."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


class BitReader:
    """Bits of a Reader's bytes, the highest of each byte first."""

    def __init__(self, source: Reader) -> None:
        self._source = source
        self._value = 0
        self._count = 0

    def bits(self, count: int) -> int:
        """The next ``count`` bits as a number, the first is the highest."""
        while self._count < count:
            self._value = self._value << 8 | self._source.byte()
            self._count += 8
        self._count -= count
        number = self._value >> self._count
        self._value &= (1 << self._count) - 1
        return number

    def golomb(self, k: int, most: int) -> int:
        """An exponential Golomb number of order ``k`` that is not above ``most``."""
        zeros = 0
        while not self.bits(1):
            zeros += 1
            if zeros + k > most.bit_length():
                raise ValueError("a frequency is too large")
        value = (1 << (zeros + k) | self.bits(zeros + k)) - (1 << k)
        if value > most:
            raise ValueError("a frequency is too large")
        return value


class BitWriter:
    """Collects bits, the highest of each byte first."""

    def __init__(self) -> None:
        self._text: list[str] = []

    def bits(self, value: int, count: int) -> None:
        """``value`` in ``count`` bits."""
        if count:
            self._text.append(f"{value:0{count}b}")

    def golomb(self, value: int, k: int) -> None:
        """``value`` as an exponential Golomb number of order ``k``."""
        shifted = value + (1 << k)
        self.bits(0, shifted.bit_length() - 1 - k)
        self.bits(shifted, shifted.bit_length())

    def to_bytes(self) -> bytes:
        """All bits, the last byte filled with zeros."""
        text = "".join(self._text)
        text += "0" * (-len(text) % 8)
        return int(text, 2).to_bytes(len(text) // 8, "big") if text else b""
