package dev.edgekit

/** Text that is not JSON. [position] counts UTF-16 units from 0. */
public class JsonException(message: String, public val position: Int) : Exception("$message at character $position")

/**
 * JSON as plain values: Map<String, Any?> in the order of the text, List<Any?>, String, Long, Double, Boolean and null.
 *
 * Stricter than most readers, because what it reads decides what a model computes: an object that names a key twice, text after the
 * value, nesting deeper than 200 and numbers that are not finite are errors.
 */
public object Json {
    /** The value of [text]; whole numbers beyond Long become Double. Throws [JsonException]. */
    public fun parse(text: String): Any? = JsonReader(text, String::toDouble).document()

    /** The same where [decimal] reads the numbers that are not whole. */
    internal fun parse(text: String, decimal: (String) -> Double): Any? = JsonReader(text, decimal).document()

    /**
     * [value] as JSON on one line. Throws IllegalArgumentException for what JSON cannot say: numbers that are not finite, other types.
     */
    public fun write(value: Any?): String = StringBuilder().also { append(it, value, 0) }.toString()

    internal const val MAX_DEPTH = 200

    private fun append(out: StringBuilder, value: Any?, depth: Int) {
        require(depth <= MAX_DEPTH) { "nested deeper than $MAX_DEPTH" }
        when (value) {
            null, is Boolean, is Long, is Int, is Short, is Byte -> out.append(value)
            is Float -> appendNumber(out, value.toDouble(), value.toString())
            is Double -> appendNumber(out, value, value.toString())
            is String -> appendString(out, value)
            is Map<*, *> -> appendObject(out, value, depth)
            is List<*> -> {
                out.append('[')
                value.forEachIndexed { index, item ->
                    if (index > 0) out.append(", ")
                    append(out, item, depth + 1)
                }
                out.append(']')
            }
            else -> throw IllegalArgumentException("${value.javaClass.name} has no JSON form; give maps, lists, strings or numbers")
        }
    }

    private fun appendNumber(out: StringBuilder, value: Double, text: String) {
        require(!value.isNaN() && !value.isInfinite()) { "$text has no JSON form; numbers must be finite" }
        out.append(text)
    }

    private fun appendObject(out: StringBuilder, map: Map<*, *>, depth: Int) {
        out.append('{')
        var first = true
        for ((key, item) in map) {
            if (!first) out.append(", ")
            first = false
            appendString(out, key as? String ?: throw IllegalArgumentException("a key must be a string, not $key"))
            out.append(": ")
            append(out, item, depth + 1)
        }
        out.append('}')
    }

    private fun appendString(out: StringBuilder, text: String) {
        out.append('"')
        for ((index, c) in text.withIndex()) {
            when {
                c == '"' || c == '\\' -> out.append('\\').append(c)
                c == '\n' -> out.append("\\n")
                c == '\r' -> out.append("\\r")
                c == '\t' -> out.append("\\t")
                c == '\b' -> out.append("\\b")
                c == '\u000c' -> out.append("\\f")
                // UTF-8 cannot carry half a surrogate pair; an escape can.
                c < ' ' || c.isSurrogate() && !isPaired(text, index) -> out.append("\\u").append(hex(c))
                else -> out.append(c)
            }
        }
        out.append('"')
    }

    private fun isPaired(text: String, index: Int): Boolean =
        if (text[index].isHighSurrogate()) {
            index + 1 < text.length && text[index + 1].isLowSurrogate()
        } else {
            index > 0 && text[index - 1].isHighSurrogate()
        }

    private fun hex(c: Char): String = Integer.toHexString(c.code).padStart(4, '0')
}

/** Recursive descent over one text. */
private class JsonReader(private val text: String, private val decimal: (String) -> Double) {
    private var at = 0

    fun document(): Any? {
        space()
        val value = value(0)
        space()
        if (at < text.length) fail("unexpected text after the value")
        return value
    }

    private fun value(depth: Int): Any? {
        if (depth > Json.MAX_DEPTH) fail("nested deeper than ${Json.MAX_DEPTH}")
        if (at >= text.length) fail("the text ends where a value is expected")
        return when (text[at]) {
            '{' -> objectValue(depth)
            '[' -> listValue(depth)
            '"' -> string()
            't' -> word("true", true)
            'f' -> word("false", false)
            'n' -> word("null", null)
            else -> number()
        }
    }

    private fun objectValue(depth: Int): Map<String, Any?> {
        val map = LinkedHashMap<String, Any?>()
        at++
        space()
        if (takes('}')) return map
        while (true) {
            if (at >= text.length || text[at] != '"') fail("a key in quotes is expected")
            val start = at
            val key = string()
            space()
            if (!takes(':')) fail("':' is expected")
            space()
            if (map.containsKey(key)) throw JsonException("the key \"${key.take(60)}\" stands twice in one object", start)
            map[key] = value(depth + 1)
            space()
            if (takes('}')) return map
            if (!takes(',')) fail("',' or '}' is expected")
            space()
        }
    }

    private fun listValue(depth: Int): List<Any?> {
        val list = ArrayList<Any?>()
        at++
        space()
        if (takes(']')) return list
        while (true) {
            list.add(value(depth + 1))
            space()
            if (takes(']')) return list
            if (!takes(',')) fail("',' or ']' is expected")
            space()
        }
    }

    private fun string(): String {
        val start = ++at
        // Most strings have no escape: cut them out whole.
        while (at < text.length && text[at] != '"' && text[at] != '\\' && text[at] >= ' ') at++
        if (at < text.length && text[at] == '"') return text.substring(start, at++)
        val out = StringBuilder().append(text, start, at)
        while (true) {
            if (at >= text.length) fail("the text ends inside a string")
            val c = text[at]
            when {
                c == '"' -> return out.toString().also { at++ }
                c == '\\' -> out.append(escape())
                c < ' ' -> fail("a control character inside a string must be escaped")
                else -> out.append(c).also { at++ }
            }
        }
    }

    private fun escape(): Char {
        if (at + 1 >= text.length) fail("the text ends inside a string")
        val c = text[at + 1]
        if (c == 'u') return unicode()
        val plain = "\"\\/bfnrt".indexOf(c)
        if (plain < 0) fail("unknown escape '\\$c'")
        at += 2
        return "\"\\/\b\u000c\n\r\t"[plain]
    }

    private fun unicode(): Char {
        var code = 0
        for (index in at + 2 until at + 6) {
            val digit = if (index < text.length && text[index] < '\u0080') Character.digit(text[index], 16) else -1
            if (digit < 0) fail("four hexadecimal digits are expected after '\\u'")
            code = code * 16 + digit
        }
        at += 6
        return code.toChar()
    }

    private fun number(): Any {
        val start = at
        takes('-')
        if (!takes('0')) digits()
        var whole = true
        if (takes('.')) {
            whole = false
            digits()
        }
        if (takes('e') || takes('E')) {
            whole = false
            if (!takes('+')) takes('-')
            digits()
        }
        val written = text.substring(start, at)
        if (whole) written.toLongOrNull()?.let { return it }
        val value = decimal(written)
        if (value.isInfinite()) throw JsonException("the number ${written.take(40)} is too large", start)
        return value
    }

    private fun digits() {
        val start = at
        while (at < text.length && text[at] in '0'..'9') at++
        if (at == start) fail(if (at < text.length) "unexpected '${text[at]}'" else "the text ends inside a number")
    }

    private fun <T> word(expected: String, value: T): T {
        if (!text.startsWith(expected, at)) fail("'$expected' is expected")
        at += expected.length
        return value
    }

    private fun takes(c: Char): Boolean {
        if (at >= text.length || text[at] != c) return false
        at++
        return true
    }

    private fun space() {
        while (at < text.length && (text[at] == ' ' || text[at] == '\n' || text[at] == '\r' || text[at] == '\t')) at++
    }

    private fun fail(message: String): Nothing = throw JsonException(message, at)
}
