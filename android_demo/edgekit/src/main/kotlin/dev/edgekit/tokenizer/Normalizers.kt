package dev.edgekit.tokenizer

/** What a tokenizer does to text before it looks for words. */
internal fun interface Normalizer {
    fun normalize(piece: Piece): Piece
}

/** A normalizer of tokenizer.json; null means none. Throws UnsupportedException for one that is not known. */
internal fun normalizer(part: Part?): Normalizer = when (part?.type) {
    null -> Normalizer { it }
    "Sequence" -> sequence(part.parts("normalizers").map { normalizer(it) })
    "NFC" -> mapping { Normalization.shared.compose(it, compatibility = false) }
    "NFD" -> mapping { Normalization.shared.decompose(it, compatibility = false) }
    "NFKC" -> mapping { Normalization.shared.compose(it, compatibility = true) }
    "NFKD" -> mapping { Normalization.shared.decompose(it, compatibility = true) }
    "Lowercase" -> mapping(Unicode::lowercase)
    "StripAccents" -> mapping { without(it, Unicode.mark) }
    "ByteLevel" -> mapping(ByteLevel::encode)
    "Nmt" -> mapping(::nmt)
    "BertNormalizer" -> bertNormalizer(part)
    "Prepend" -> prepend(part)
    "Replace" -> replace(part)
    "Strip" -> strip(part.flag("strip_left"), part.flag("strip_right"))
    "Precompiled" -> Precompiled.read(part)
    else -> part.refuse("the normalizer \"${part.type}\"")
}

private fun mapping(change: (String) -> String): Normalizer = Normalizer { it.map(change) }

private fun sequence(normalizers: List<Normalizer>): Normalizer =
    Normalizer { normalizers.fold(it) { piece, normalizer -> normalizer.normalize(piece) } }

private fun prepend(part: Part): Normalizer {
    val prefix = part.text("prepend")
    // The library itself loses its place in the text after this, and after a match of nothing (see [replace]).
    if (prefix.isEmpty()) part.refuse("prepending nothing")
    return Normalizer { if (it.text.isEmpty()) it else it.prepend(prefix) }
}

private fun bertNormalizer(part: Part): Normalizer {
    val lowercase = part.flag("lowercase")
    val accents = part.flagOrNull("strip_accents") ?: lowercase
    val steps = ArrayList<(String) -> String>()
    if (part.flag("clean_text")) steps.add(::cleaned)
    if (part.flag("handle_chinese_chars")) steps.add(::spacedChinese)
    if (accents) steps.add { without(Normalization.shared.decompose(it, compatibility = false), Unicode.bertAccent) }
    if (lowercase) steps.add(Unicode::lowercase)
    return sequence(steps.map { mapping(it) })
}

/** Without control characters; white space of every kind becomes a space. */
private fun cleaned(text: String): String {
    val out = StringBuilder(text.length)
    forEachCodePoint(text) { if (it !in Unicode.cleaned) out.appendCodePoint(if (it in Unicode.space) ' '.code else it) }
    return out.toString()
}

private val CHINESE = intArrayOf(
    0x4E00, 0xA000, 0x3400, 0x4DC0, 0x20000, 0x2A6E0, 0x2A700, 0x2B740, 0x2B740, 0x2B820, 0x2B920, 0x2CEB0, 0xF900, 0xFB00,
    0x2F800, 0x2FA20
)

private fun isChinese(point: Int): Boolean =
    point >= 0x3400 && CHINESE.indices.any { it % 2 == 0 && point >= CHINESE[it] && point < CHINESE[it + 1] }

private fun spacedChinese(text: String): String {
    val out = StringBuilder(text.length)
    forEachCodePoint(text) { if (isChinese(it)) out.append(' ').appendCodePoint(it).append(' ') else out.appendCodePoint(it) }
    return out.toString()
}

/** SentencePiece's rules for machine translation: some control characters go, other characters become spaces. */
private fun nmt(text: String): String {
    val out = StringBuilder(text.length)
    forEachCodePoint(text) { point ->
        when (point) {
            in 0x01..0x08, 0x0B, in 0x0E..0x1F, 0x7F, 0x8F, 0x9F -> Unit
            0x09, 0x0A, 0x0C, 0x0D, 0x1680, in 0x200B..0x200F, 0x2028, 0x2029, 0x2581, 0xFEFF, 0xFFFD -> out.append(' ')
            else -> out.appendCodePoint(point)
        }
    }
    return out.toString()
}

private fun strip(left: Boolean, right: Boolean): Normalizer = Normalizer { piece ->
    val text = piece.text
    var start = 0
    var end = text.length
    // White space has no surrogate pairs.
    if (left) while (start < end && text[start].code in Unicode.space) start++
    if (right) while (end > start && text[end - 1].code in Unicode.space) end--
    if (start == 0 && end == text.length) piece else piece.slice(start, end)
}

private fun replace(part: Part): Normalizer {
    val pattern = pattern(part)
    if (pattern.canBeEmpty) part.refuse("replacing where a pattern matches nothing")
    return Replacement(pattern, part.text("content"))
}

/** The `pattern` of a part of tokenizer.json: a text or a regular expression. */
internal fun pattern(part: Part): Pattern {
    val given = part.part("pattern") ?: part.broken("no \"pattern\"")
    given.textOrNull("String")?.let { return Pattern.literal(it) }
    given.textOrNull("Regex")?.let { return Pattern.regex(it) }
    given.refuse("a pattern that is neither String nor Regex")
}

internal class Replacement(private val pattern: Pattern, private val content: String) : Normalizer {
    override fun normalize(piece: Piece): Piece {
        val out = StringBuilder(piece.text.length)
        var begin = 0
        var atBegin = piece.begin > 0
        pattern.parts(piece.text) { start, end, isMatch ->
            if (isMatch) out.append(content) else out.append(piece.text, start, end)
            if (atBegin) {
                // What is put in stands where the last character that it replaces stood.
                if (!isMatch) begin += minOf(end, piece.begin) - start else if (end <= piece.begin) begin += content.length
                atBegin = end < piece.begin
            }
        }
        return Piece(out.toString(), piece.id, begin)
    }

    fun replace(text: String): String {
        val out = StringBuilder(text.length)
        pattern.parts(text) { start, end, isMatch -> if (isMatch) out.append(content) else out.append(text, start, end) }
        return out.toString()
    }
}
