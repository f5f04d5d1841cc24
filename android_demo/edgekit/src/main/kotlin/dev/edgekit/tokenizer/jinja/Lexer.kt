package dev.edgekit.tokenizer.jinja

internal enum class Kind { TEXT, PRINT, BLOCK, TAG_END, NAME, STRING, NUMBER, OPERATOR, END }

/** A word of a template; [value] is what a literal means. */
internal class Token(val kind: Kind, val text: String, val line: Int, val value: Any? = null)

/**
 * Cuts a template into words. White space is kept as transformers has it: a newline after a block goes (`trim_blocks`), so do spaces before
 * a block that begins its line (`lstrip_blocks`) and one newline at the end.
 */
internal class Lexer(template: String) {
    private val source = oneKindOfNewline(template).removeSuffix("\n")
    private val tokens = ArrayList<Token>()
    private var at = 0
    private var line = 1
    private var counted = 0
    private var lineStarts = true

    /** Throws TemplateFailure where the template is broken. */
    fun tokens(): List<Token> {
        while (true) {
            val start = nextTag() ?: break
            val opening = source[start + 1]
            val sign = source.getOrNull(start + 2).takeIf { it == '-' || it == '+' }
            text(start, sign, opening != '{')
            at = start + if (sign == null) 2 else 3
            when (opening) {
                '#' -> comment()
                '%' -> tag(Kind.BLOCK, "%}")
                else -> tag(Kind.PRINT, "}}")
            }
        }
        if (at < source.length) add(Kind.TEXT, source.substring(at))
        add(Kind.END, "the end of the template")
        return tokens
    }

    private fun nextTag(): Int? = (at until source.length - 1).firstOrNull { source[it] == '{' && source[it + 1] in "{%#" }

    private fun text(end: Int, sign: Char?, isBlock: Boolean) {
        var text = source.substring(at, end)
        val lineStart = text.lastIndexOf('\n') + 1
        when {
            sign == '-' -> text = text.trimEnd(::isSpace)
            sign == '+' || !isBlock || lineStart == 0 && !lineStarts -> {}
            (lineStart until text.length).all { isSpace(text[it]) } -> text = text.substring(0, lineStart)
        }
        if (text.isNotEmpty()) add(Kind.TEXT, text)
    }

    private fun comment() {
        val end = source.indexOf("#}", at)
        if (end < 0) fail("a comment is not closed")
        val sign = if (end > at) source[end - 1] else null
        at = end + 2
        skipAfter(sign, trims = true)
    }

    private fun tag(kind: Kind, close: String) {
        add(kind, "")
        val open = ArrayList<Char>() // an end inside brackets is two brackets
        while (true) {
            while (at < source.length && isSpace(source[at])) at++
            if (at >= source.length) fail("the template ends where \"$close\" is expected")
            if (open.isEmpty() && ends(close)) return
            word(open)
        }
    }

    private fun ends(close: String): Boolean {
        val sign = source[at].takeIf { it == '-' || it == '+' && close == "%}" }
        val start = if (sign == null) at else at + 1
        if (!source.startsWith(close, start)) return false
        add(Kind.TAG_END, close)
        at = start + close.length
        skipAfter(sign, trims = close == "%}")
        return true
    }

    private fun skipAfter(sign: Char?, trims: Boolean) {
        when {
            sign == '-' -> while (at < source.length && isSpace(source[at])) at++
            sign != '+' && trims && source.startsWith("\n", at) -> at++
        }
        lineStarts = source[at - 1] == '\n'
    }

    private fun word(open: MutableList<Char>) {
        val c = source[at]
        if (c == '\'' || c == '"') return string(c)
        FLOAT.matchAt(source, at)?.let { return literal(it.value, it.value.replace("_", "").toDouble()) }
        INTEGER.matchAt(source, at)?.let { return literal(it.value, whole(it.value)) }
        val name = NAME.matchAt(source, at)?.value
        val text = name ?: OPERATORS.firstOrNull { source.startsWith(it, at) } ?: fail("unexpected '$c'")
        when (c) {
            '(', '[', '{' -> open.add(c)
            ')', ']', '}' -> if (pop(open) != PAIRS[c]) fail("unexpected '$c'")
        }
        add(if (name != null) Kind.NAME else Kind.OPERATOR, text)
        at += text.length
    }

    private fun literal(text: String, value: Any) {
        add(Kind.NUMBER, text, value)
        at += text.length
    }

    private fun whole(text: String): Long =
        text.replace("_", "").toLongOrNull() ?: throw TemplateUnknown("the number ${text.take(40)} beyond 64 bits")

    private fun string(quote: Char) {
        var end = at + 1
        while (end < source.length && source[end] != quote) end += if (source[end] == '\\') 2 else 1
        if (end >= source.length) fail("a string is not closed")
        add(Kind.STRING, "a string", unescaped(source.substring(at + 1, end)))
        at = end + 1
    }

    private fun add(kind: Kind, text: String, value: Any? = null) {
        tokens.add(Token(kind, text, lineHere(), value))
    }

    private fun lineHere(): Int {
        while (counted < at) if (source[counted++] == '\n') line++
        return line
    }

    private fun fail(what: String): Nothing = throw TemplateFailure("$what (line ${lineHere()})")

    private companion object {
        const val DIGITS = "(?:[0-9]+_)*[0-9]+"
        val FLOAT = Regex("(?<!\\.)$DIGITS(?:(?:\\.$DIGITS)?[eE][+-]?$DIGITS|\\.$DIGITS)")
        val INTEGER = Regex("[1-9](?:_?[0-9])*|0(?:_?0)*")
        val NAME = Regex("[\\p{L}_][\\p{L}\\p{N}_]*")
        val OPERATORS = listOf("**", "//", "==", "!=", ">=", "<=") + "+-/*%~[](){}<>=.:|,".map(Char::toString)
        val PAIRS = mapOf(')' to '(', ']' to '[', '}' to '{')
    }
}

// Java 21 has a removeLast of its own, which Android lacks.
private fun pop(open: MutableList<Char>): Char? = if (open.isEmpty()) null else open.removeAt(open.size - 1)

private fun oneKindOfNewline(text: String): String = text.replace("\r\n", "\n").replace('\r', '\n')

/** A string between its quotes, with the escapes of Python. */
private fun unescaped(text: String): String {
    if ('\\' !in text) return text
    val out = StringBuilder(text.length)
    var at = 0
    while (at < text.length) {
        if (text[at] != '\\') out.append(text[at++]) else at = escape(text, at + 1, out)
    }
    return out.toString()
}

/** Adds what the escape means whose letter is at [at]; where the text goes on. */
private fun escape(text: String, at: Int, out: StringBuilder): Int {
    val c = text[at]
    val plain = "abfnrtv\\'\"".indexOf(c)
    val digits = mapOf('x' to 2, 'u' to 4, 'U' to 8)[c]
    when {
        plain >= 0 -> out.append("\u0007\b\u000c\n\r\t\u000b\\'\""[plain])
        c == '\n' -> {}
        c in '0'..'7' || c == 'N' -> throw TemplateUnknown("the escape '\\$c'")
        digits != null -> {
            val point = text.substring(at + 1).take(digits).takeIf { it.length == digits }?.toIntOrNull(16)
            if (point == null || !Character.isValidCodePoint(point)) throw TemplateFailure("the escape '\\$c' in a string is broken")
            out.appendCodePoint(point)
            return at + 1 + digits
        }
        else -> out.append('\\').append(c)
    }
    return at + 1
}
