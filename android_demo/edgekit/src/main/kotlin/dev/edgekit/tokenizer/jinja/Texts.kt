package dev.edgekit.tokenizer.jinja

import java.util.Locale

private const val MAX_SPLIT = 1 shl 20

/** What Python takes for white space in a text. */
internal fun isSpace(c: Char): Boolean =
    c in '\t'..'\r' || c in '\u001c'..' ' || c == '\u0085' || c == '\u00a0' || c == '\u1680' || c in '\u2000'..'\u200a' ||
        c == '\u2028' || c == '\u2029' || c == '\u202f' || c == '\u205f' || c == '\u3000'

/** [text] without the characters in [chars] at its ends; without white space when that is null. */
internal fun stripped(text: String, chars: String?, left: Boolean = true, right: Boolean = true): String {
    val dropped = chars?.let { characters(it).toSet() }
    fun drops(point: Int): Boolean =
        if (dropped == null) point < 0x10000 && isSpace(point.toChar()) else String(Character.toChars(point)) in dropped
    var start = 0
    var end = text.length
    while (left && start < end && drops(text.codePointAt(start))) start += Character.charCount(text.codePointAt(start))
    while (right && end > start && drops(text.codePointBefore(end))) end -= Character.charCount(text.codePointBefore(end))
    return text.substring(start, end)
}

/** The parts between separators, at most [most] cuts unless negative; words between white space when [separator] is null. */
internal fun split(text: String, separator: String?, most: Long): List<String> {
    if (separator == "") throw TemplateFailure("an empty separator")
    if (text.length > MAX_SPLIT) throw TemplateFailure("a text to split is longer than $MAX_SPLIT")
    val limit = if (most < 0) Long.MAX_VALUE else most
    if (separator == null) return words(text, limit)
    val parts = ArrayList<String>()
    var start = 0
    while (parts.size < limit) {
        val end = text.indexOf(separator, start)
        if (end < 0) break
        parts.add(text.substring(start, end))
        start = end + separator.length
    }
    parts.add(text.substring(start))
    return parts
}

private fun words(text: String, limit: Long): List<String> {
    val parts = ArrayList<String>()
    var rest = stripped(text, null, right = false)
    while (rest.isNotEmpty() && parts.size < limit) {
        val end = rest.indexOfFirst(::isSpace).let { if (it < 0) rest.length else it }
        parts.add(rest.substring(0, end))
        rest = stripped(rest.substring(end), null, right = false)
    }
    if (rest.isNotEmpty()) parts.add(rest) // with the white space at its end, as in Python
    return parts
}

/** With [new] for each [old], for the first [most] of them unless negative. */
internal fun replaced(text: String, old: String, new: String, most: Long): String {
    if (old.isEmpty()) throw TemplateUnknown("replacing the empty text")
    val parts = split(text, old, most)
    if (text.length + (parts.size - 1L) * (new.length - old.length) > MAX_TEXT) throw TemplateFailure("a text is longer than $MAX_TEXT")
    return parts.joinToString(new)
}

internal fun upper(text: String): String = text.uppercase(Locale.ROOT)

internal fun lower(text: String): String = text.lowercase(Locale.ROOT)

/** The first letter large, the others small. */
internal fun capitalized(text: String): String {
    val letters = characters(text)
    if (letters.isEmpty()) return text
    return titled(letters[0]) + lower(letters.drop(1).joinToString(""))
}

/** Each word with its first letter large: a word begins at a letter after what is none. */
internal fun title(text: String): String {
    val out = StringBuilder()
    var inside = false
    for (letter in characters(text)) {
        out.append(if (inside) lower(letter) else titled(letter))
        inside = lower(letter) != letter || upper(letter) != letter
    }
    return out.toString()
}

private fun titled(letter: String): String {
    // Java knows no such letter that is several.
    if (upper(letter).length > letter.length) throw TemplateUnknown("'$letter' as the large letter of a word")
    return String(Character.toChars(Character.toTitleCase(letter.codePointAt(0))))
}
