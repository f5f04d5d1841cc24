package dev.edgekit.tokenizer

/** What splits normalized text into words, each of which the model cuts into tokens. */
internal fun interface PreTokenizer {
    fun split(pieces: List<Piece>): List<Piece>
}

/** A pre-tokenizer of tokenizer.json; null means none. Throws UnsupportedException for one that is not known. */
internal fun preTokenizer(part: Part?): PreTokenizer = when (part?.type) {
    null -> PreTokenizer { it }
    "Sequence" -> {
        val all = part.parts("pretokenizers").map { preTokenizer(it) }
        PreTokenizer { all.fold(it) { pieces, one -> one.split(pieces) } }
    }
    "ByteLevel" -> byteLevel(part)
    "Metaspace" -> metaspace(part)
    "Split" -> split(pattern(part), Delimiters.read(part, "behavior"), part.flag("invert"))
    "Digits" -> delimited(Unicode.numeric, if (part.flag("individual_digits")) Delimiters.ISOLATED else Delimiters.CONTIGUOUS)
    "Punctuation" ->
        delimited(Unicode.punctuation, if (part.has("behavior")) Delimiters.read(part, "behavior") else Delimiters.ISOLATED)
    "CharDelimiterSplit" -> delimited(CodePointSet.of(onePoint(part, "delimiter")), Delimiters.REMOVED)
    "WhitespaceSplit" -> delimited(Unicode.space, Delimiters.REMOVED)
    "Whitespace" -> whitespace()
    "BertPreTokenizer" -> {
        val words = delimited(Unicode.space, Delimiters.REMOVED)
        val punctuation = delimited(Unicode.punctuation, Delimiters.ISOLATED)
        PreTokenizer { punctuation.split(words.split(it)) }
    }
    else -> part.refuse("the pre-tokenizer \"${part.type}\"")
}

/** A text of exactly one code point. */
internal fun onePoint(part: Part, key: String): Int {
    val text = part.text(key)
    if (text.isEmpty() || text.codePointCount(0, text.length) != 1) part.broken("\"$key\" is not one character")
    return text.codePointAt(0)
}

private fun split(pattern: Pattern, delimiters: Delimiters, invert: Boolean): PreTokenizer = PreTokenizer { pieces ->
    val cuts = Cuts()
    splitEach(pieces) { piece, out ->
        cuts.clear()
        pattern.parts(piece.text, cuts::add)
        cuts.split(piece, delimiters, invert, out)
    }
}

private fun delimited(set: CodePointSet, delimiters: Delimiters): PreTokenizer = PreTokenizer { pieces ->
    val cuts = Cuts()
    splitEach(pieces) { piece, out ->
        cuts.clear()
        cuts.at(set, piece.text)
        cuts.split(piece, delimiters, false, out)
    }
}

/** Runs of word characters, and runs of what is neither those nor white space. */
private fun whitespace(): PreTokenizer = PreTokenizer { pieces ->
    splitEach(pieces) { piece, out ->
        var start = 0
        var kind = -1
        var at = 0
        while (at < piece.text.length) {
            val point = piece.text.codePointAt(at)
            val own = if (point in Unicode.word) 1 else if (point in Unicode.space) 0 else 2
            if (own != kind) {
                if (kind > 0) out.add(piece.slice(start, at))
                start = at
                kind = own
            }
            at += Character.charCount(point)
        }
        if (kind > 0) out.add(piece.slice(start, at))
    }
}

private fun byteLevel(part: Part): PreTokenizer {
    val prefix = part.flag("add_prefix_space")
    val words = if (part.flagOrNull("use_regex") ?: true) split(ByteLevel.words, Delimiters.ISOLATED, false) else null
    return PreTokenizer { pieces ->
        val begun = if (prefix) splitEach(pieces) { piece, out -> out.add(spaced(piece)) } else pieces
        val found = words?.split(begun) ?: begun
        found.map { piece -> if (piece.id >= 0) piece else piece.map(ByteLevel::encode) }
    }
}

private fun spaced(piece: Piece): Piece = if (piece.text.startsWith(' ') || piece.text.isEmpty()) piece else piece.prepend(" ")

private fun metaspace(part: Part): PreTokenizer {
    val point = onePoint(part, "replacement")
    val replacement = String(Character.toChars(point))
    val scheme = metaspaceScheme(part)
    val split = part.flagOrNull("split") ?: true
    val delimiter = CodePointSet.of(point)
    return PreTokenizer { pieces ->
        val cuts = Cuts()
        splitEach(pieces) { piece, out ->
            var marked = piece.map { it.replace(" ", replacement) }
            val prepends = scheme == "always" || scheme == "first" && piece.begin > 0
            if (prepends && !marked.text.startsWith(replacement)) marked = marked.prepend(replacement)
            if (split) {
                cuts.clear()
                cuts.at(delimiter, marked.text)
                cuts.split(marked, Delimiters.MERGED_WITH_NEXT, false, out)
            } else {
                out.add(marked)
            }
        }
    }
}

/** "first", "always" or "never"; older files say it with a flag. */
internal fun metaspaceScheme(part: Part): String {
    val scheme = part.textOrNull("prepend_scheme") ?: "always"
    if (scheme !in listOf("first", "always", "never")) part.refuse("the prepend_scheme \"$scheme\"")
    if (part.flagOrNull("add_prefix_space") != false) return scheme
    // A file without prepend_scheme is read as "always", which contradicts the flag: the library refuses both the same way.
    if (scheme != "never") part.broken("add_prefix_space contradicts prepend_scheme")
    return scheme
}
