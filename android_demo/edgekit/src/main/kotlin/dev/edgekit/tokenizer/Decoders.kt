package dev.edgekit.tokenizer

/** One step from the texts of tokens to the text that they make: as many texts, or fewer. */
internal fun interface Decoder {
    fun decode(tokens: List<String>): List<String>
}

/** A decoder of tokenizer.json; null joins the tokens with spaces. Throws UnsupportedException for one that is not known. */
internal fun decoder(part: Part?): Decoder = when (part?.type) {
    null -> Decoder { listOf(it.joinToString(" ")) }
    "Sequence" -> {
        val all = part.parts("decoders").map { decoder(it) }
        Decoder { all.fold(it) { tokens, one -> one.decode(tokens) } }
    }
    "ByteLevel" -> Decoder(::byteLevel)
    "ByteFallback" -> Decoder(::byteFallback)
    "Fuse" -> Decoder { listOf(it.joinToString("")) }
    "Metaspace" -> metaspaceDecoder(part)
    "WordPiece" -> wordPiece(part.text("prefix"), part.flag("cleanup"))
    "Strip" -> strip(onePoint(part, "content"), part.number("start"), part.number("stop"))
    "BPEDecoder" -> bpe(part)
    "Replace" -> {
        val replacement = Replacement(pattern(part), part.text("content"))
        Decoder { tokens -> tokens.map(replacement::replace) }
    }
    else -> part.refuse("the decoder \"${part.type}\"")
}

private fun byteLevel(tokens: List<String>): List<String> {
    val parts = tokens.map { ByteLevel.decode(it) ?: it.toByteArray(Charsets.UTF_8) }
    val all = ByteArray(parts.sumOf { it.size })
    var at = 0
    for (part in parts) {
        part.copyInto(all, at)
        at += part.size
    }
    return listOf(Utf8.lossy(all))
}

/** Tokens like `<0xE2>` that follow one another become the characters that their bytes make, or one U+FFFD for each. */
private fun byteFallback(tokens: List<String>): List<String> {
    val found = ArrayList<String>(tokens.size)
    val bytes = IntList()
    fun flush() {
        if (bytes.size == 0) return
        val text = Utf8.strict(ByteArray(bytes.size) { bytes.values[it].toByte() })
        if (text != null) found.add(text) else repeat(bytes.size) { found.add("\uFFFD") }
        bytes.clear()
    }
    for (token in tokens) {
        val byte = byteOf(token)
        if (byte >= 0) {
            bytes.add(byte)
        } else {
            flush()
            found.add(token)
        }
    }
    flush()
    return found
}

private fun byteOf(token: String): Int {
    if (token.length != 6 || !token.startsWith("<0x") || token[5] != '>') return -1
    val high = hexadecimal(token[3])
    val low = hexadecimal(token[4])
    if (token[3] == '+') return low // Rust's reading of numbers
    return if (high < 0 || low < 0) -1 else high * 16 + low
}

private fun hexadecimal(c: Char): Int = if (c < '\u0080') Character.digit(c, 16) else -1

private fun metaspaceDecoder(part: Part): Decoder {
    val replacement = String(Character.toChars(onePoint(part, "replacement")))
    val drops = metaspaceScheme(part) != "never"
    return Decoder { tokens ->
        tokens.mapIndexed { index, token -> token.replace(replacement, if (index == 0 && drops) "" else " ") }
    }
}

/** The spaces that WordPiece's cleanup takes away, in its order. */
private val CLEANUP = listOf(
    " ." to ".", " ?" to "?", " !" to "!", " ," to ",", " ' " to "'", " n't" to "n't", " 'm" to "'m", " do not" to " don't",
    " 's" to "'s", " 've" to "'ve", " 're" to "'re"
)

private fun wordPiece(prefix: String, cleanup: Boolean): Decoder = Decoder { tokens ->
    tokens.mapIndexed { index, token ->
        val text = if (index == 0) token else if (token.startsWith(prefix)) token.substring(prefix.length) else " $token"
        if (cleanup) CLEANUP.fold(text) { all, (from, to) -> all.replace(from, to) } else text
    }
}

private fun strip(point: Int, start: Int, stop: Int): Decoder {
    val content = String(Character.toChars(point))
    return Decoder { tokens ->
        tokens.map { token ->
            var from = 0
            var to = token.length
            var count = 0
            while (count++ < start && token.startsWith(content, from)) from += content.length
            count = 0
            while (count++ < stop && to > from && token.startsWith(content, to - content.length)) to -= content.length
            token.substring(from, to)
        }
    }
}

private fun bpe(part: Part): Decoder {
    val suffix = part.text("suffix")
    if (suffix.isEmpty()) part.refuse("an empty suffix")
    return Decoder { tokens ->
        tokens.mapIndexed { index, token -> token.replace(suffix, if (index == tokens.size - 1) "" else " ") }
    }
}
