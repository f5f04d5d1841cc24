package dev.edgekit.tokenizer

import dev.edgekit.UnsupportedException

/** What a regular expression says, before it is made ready to match. */
internal sealed class Syntax {
    class Point(val point: Int) : Syntax()

    class Chars(val set: CodePointSet) : Syntax()

    class Chain(val parts: List<Syntax>) : Syntax()

    class Choice(val branches: List<Syntax>) : Syntax()

    class Repeat(val part: Syntax, val min: Int, val max: Int, val greed: Greed) : Syntax()

    class Look(val part: Syntax, val ahead: Boolean, val negative: Boolean) : Syntax()

    class Atomic(val part: Syntax) : Syntax()

    class Place(val anchor: Anchor) : Syntax()
}

internal enum class Greed { GREEDY, LAZY, POSSESSIVE }

internal enum class Anchor { TEXT_START, TEXT_END, LAST_LINE_END, LINE_START, LINE_END }

/**
 * Reads Oniguruma's dialect, which tokenizer.json uses: `\s`, `\w` and `\d` know all of Unicode, `^` and `$` match at every line.
 * What it does not know it refuses by name.
 */
internal class PatternParser(private val pattern: String) {
    private var at = 0
    private var ignoreCase = false

    fun parse(): Syntax {
        val whole = choice()
        if (at < pattern.length) refuse("')' without '('")
        return whole
    }

    private fun choice(): Syntax {
        val branches = arrayListOf(chain())
        while (takes('|')) branches.add(chain())
        return branches.singleOrNull() ?: Syntax.Choice(branches)
    }

    private fun chain(): Syntax {
        val parts = ArrayList<Syntax>()
        while (at < pattern.length && pattern[at] != '|' && pattern[at] != ')') {
            val part = part()
            if (ignoreCase) refuseFolding(pattern.take(at).takeLast(2).lowercase())
            parts.add(quantified(part))
        }
        return parts.singleOrNull() ?: Syntax.Chain(parts)
    }

    /** These pairs of letters also match one character (ß, ﬁ, ﬆ, ...) when case is ignored. */
    private fun refuseFolding(pair: String) {
        if (pair in listOf("ss", "ff", "fi", "fl", "st")) refuse("'$pair' where case is ignored")
    }

    private fun part(): Syntax {
        val point = next()
        return when (point.toChar()) {
            '(' -> group()
            '[' -> Syntax.Chars(set())
            '.' -> Syntax.Chars(CodePointSet.of('\n'.code).inverted())
            '^' -> Syntax.Place(Anchor.LINE_START)
            '$' -> Syntax.Place(Anchor.LINE_END)
            '\\' -> escape()
            '*', '+', '?' -> refuse("a quantifier without anything before it")
            else -> literal(point)
        }
    }

    private fun literal(point: Int): Syntax {
        if (!ignoreCase) return Syntax.Point(point)
        if (point >= 0x80) refuse("a letter beyond ASCII where case is ignored")
        val cases = foldings(point)
        return if (cases.size == 1) Syntax.Point(point) else Syntax.Chars(CodePointSet.of(*cases))
    }

    /** What matches an ASCII character when case is ignored: ſ and K are other cases of s and k. */
    private fun foldings(point: Int): IntArray = when (val c = point.toChar().lowercaseChar()) {
        's' -> intArrayOf('s'.code, 'S'.code, 0x17F)
        'k' -> intArrayOf('k'.code, 'K'.code, 0x212A)
        in 'a'..'z' -> intArrayOf(c.code, c.uppercaseChar().code)
        else -> intArrayOf(point)
    }

    private fun group(): Syntax {
        if (!takes('?')) return closed(choice()) // captures are not used: a plain group
        if (takes(':')) return closed(choice())
        if (takes('=')) return Syntax.Look(closed(choice()), ahead = true, negative = false)
        if (takes('!')) return Syntax.Look(closed(choice()), ahead = true, negative = true)
        if (takes("<=")) return Syntax.Look(closed(choice()), ahead = false, negative = false)
        if (takes("<!")) return Syntax.Look(closed(choice()), ahead = false, negative = true)
        if (takes('>')) return Syntax.Atomic(closed(choice()))
        if (!takes("i:")) refuse("the group '(?${pattern.drop(at).take(3)}'")
        val outside = ignoreCase
        ignoreCase = true
        val inside = closed(choice())
        ignoreCase = outside
        return inside
    }

    private fun closed(part: Syntax): Syntax {
        if (!takes(')')) refuse("'(' without ')'")
        return part
    }

    private fun escape(): Syntax {
        setEscape()?.let { return Syntax.Chars(caseChecked(it)) }
        if (takes('A')) return Syntax.Place(Anchor.TEXT_START)
        if (takes('z')) return Syntax.Place(Anchor.TEXT_END)
        if (takes('Z')) return Syntax.Place(Anchor.LAST_LINE_END)
        return literal(pointEscape())
    }

    private fun caseChecked(set: CodePointSet): CodePointSet {
        if (ignoreCase) refuse("a property or class where case is ignored")
        return set
    }

    /** The set of `\s`, `\p{L}` and the like, or null for another escape. */
    private fun setEscape(): CodePointSet? {
        if (at >= pattern.length) refuse("'\\' at the end")
        val set = when (pattern[at].lowercaseChar()) {
            's' -> Unicode.patternSpace
            'w' -> Unicode.patternWord
            'd' -> Unicode.property("Nd")!!
            'p' -> return property()
            else -> return null
        }
        return if (pattern[at++].isUpperCase()) set.inverted() else set
    }

    private fun property(): CodePointSet {
        val end = pattern.indexOf('}', at)
        if (end < 0 || pattern.getOrNull(at + 1) != '{') refuse("'\\p' without a name in braces")
        val negative = pattern[at] == 'P'
        val inside = pattern.substring(at + 2, end)
        val name = inside.removePrefix("^")
        at = end + 1
        val set = Unicode.property(name) ?: refuse("the property '\\p{$inside}'")
        return if (negative != inside.startsWith("^")) set.inverted() else set
    }

    private fun pointEscape(): Int {
        val point = next()
        if (point > 0x7F || !Character.isLetterOrDigit(point)) return point
        return when (point.toChar()) {
            'n' -> '\n'.code
            'r' -> '\r'.code
            't' -> '\t'.code
            'f' -> 0x0C
            'v' -> 0x0B
            'a' -> 0x07
            'e' -> 0x1B
            'x' -> if (takes('{')) hexadecimal(pattern.indexOf('}', at)).also { at++ } else hexadecimal(at + 2)
            'u' -> hexadecimal(at + 4)
            else -> refuse("the escape '\\${point.toChar()}'")
        }
    }

    private fun hexadecimal(end: Int): Int {
        val digits = if (end in at..pattern.length) pattern.substring(at, end) else ""
        val point = if (digits.all { it in "0123456789abcdefABCDEF" }) digits.toIntOrNull(16) else null
        if (point == null || point >= CodePointSet.END || point in 0x80..0xFF && digits.length == 2) refuse("the hexadecimal escape")
        at = end
        return point
    }

    /** After '[': to its ']'. */
    private fun set(): CodePointSet {
        val negative = takes('^')
        if (at < pattern.length && pattern[at] == ']') refuse("']' directly after '['")
        var whole = CodePointSet.ALL
        var part = CodePointSet(IntArray(0))
        while (!takes(']')) {
            if (at >= pattern.length) refuse("'[' without ']'")
            if (takes("&&")) {
                whole = whole and part
                part = CodePointSet(IntArray(0))
            } else {
                part += setPart()
            }
        }
        val set = whole and part
        if (negative && ignoreCase) refuse("a negated class where case is ignored")
        return if (negative) set.inverted() else set
    }

    private fun setPart(): CodePointSet {
        if (pattern.startsWith("[:", at)) refuse("a POSIX class")
        if (takes('[')) return set()
        if (pattern[at] == '\\') {
            at++
            setEscape()?.let { return caseChecked(it) }
            at--
        }
        val first = setPoint()
        if (at + 1 >= pattern.length || pattern[at] != '-' || pattern[at + 1] == ']') return folded(first, first)
        at++
        if (pattern[at] == '[' || pattern.startsWith("&&", at)) refuse("a range without an end")
        val last = setPoint()
        if (last < first) refuse("a range that ends before it begins")
        return folded(first, last)
    }

    private fun setPoint(): Int {
        val point = next()
        if (point != '\\'.code) return point
        if (at < pattern.length && pattern[at] in "sSwWdDpPb") refuse("a class inside a range, or '\\b'")
        return pointEscape()
    }

    private fun folded(first: Int, last: Int): CodePointSet {
        val range = CodePointSet.range(first, last)
        if (!ignoreCase) return range
        if (last >= 0x80) refuse("a letter beyond ASCII where case is ignored")
        return (first..last).fold(range) { all, point -> all + CodePointSet.of(*foldings(point)) }
    }

    private fun quantified(part: Syntax): Syntax {
        var result = part
        while (true) {
            val start = at
            val (min, max) = bounds() ?: return result
            if (result is Syntax.Place || result is Syntax.Look) refuse("a quantifier on a place")
            val interval = pattern[start] == '{'
            val greed = when {
                at < pattern.length && pattern[at] == '?' -> Greed.LAZY
                // After an interval it is another quantifier.
                at < pattern.length && pattern[at] == '+' && !interval -> Greed.POSSESSIVE
                else -> Greed.GREEDY
            }
            if (interval && greed == Greed.LAZY && min == max) refuse("'?' after a fixed number")
            if (greed != Greed.GREEDY) at++
            result = Syntax.Repeat(result, min, max, greed)
        }
    }

    /** How often the part before may stand, or null when no quantifier follows. */
    private fun bounds(): Pair<Int, Int>? {
        if (takes('*')) return 0 to Int.MAX_VALUE
        if (takes('+')) return 1 to Int.MAX_VALUE
        if (takes('?')) return 0 to 1
        val match = if (at < pattern.length && pattern[at] == '{') INTERVAL.find(pattern, at) else null
        if (match == null || match.range.first != at) return null
        at = match.range.last + 1
        val (low, comma, high) = match.destructured
        if (low.isEmpty() && high.isEmpty()) refuse("the interval '${match.value}'")
        val min = low.ifEmpty { "0" }.toInt()
        val max = if (comma.isEmpty()) min else if (high.isEmpty()) Int.MAX_VALUE else high.toInt()
        if (max < min) refuse("the interval '${match.value}'")
        return min to max
    }

    private fun next(): Int = pattern.codePointAt(at).also { at += Character.charCount(it) }

    private fun takes(c: Char): Boolean = takes(c.toString())

    private fun takes(text: String): Boolean {
        if (!pattern.startsWith(text, at)) return false
        at += text.length
        return true
    }

    private fun refuse(what: String): Nothing =
        throw UnsupportedException("regular expression '${pattern.take(200)}': $what at $at is not supported")

    private companion object {
        val INTERVAL = Regex("\\{(\\d{0,5})(,?)(\\d{0,5})\\}")
    }
}
