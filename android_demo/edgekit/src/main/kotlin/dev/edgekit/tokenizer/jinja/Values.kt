package dev.edgekit.tokenizer.jinja

import kotlin.math.abs

// Values are null, Boolean, Long, Double, String, List, Map, Undefined, Namespace and Function; they behave as Python's do.

/** The template is broken, or refuses the messages. */
internal class TemplateFailure(message: String) : Exception(message)

/** The template uses [what], which this interpreter does not know. */
internal class TemplateUnknown(val what: String) : Exception(what)

/** A name that means nothing: empty as a text, false as a condition, and an error in most other places. */
internal class Undefined(val why: String, val mayBeMethod: Boolean = false)

internal class Namespace(val fields: MutableMap<String, Any?>)

/** A macro, a method with its object, or a function of the environment. */
internal class Function(val name: String, val call: (Given) -> Any?)

/** The arguments of a call of [what]. */
internal class Given(val what: String, private val positional: List<Any?>, private val named: Map<String, Any?>) {
    /** The arguments in the order of [names]; [ABSENT] for those that were not given. */
    fun take(vararg names: String): List<Any?> {
        if (positional.size > names.size) throw TemplateFailure("$what takes ${names.size} arguments, not ${positional.size}")
        val known = names.drop(positional.size)
        named.keys.firstOrNull { it !in known }?.let { throw TemplateUnknown("the argument '$it' of $what") }
        return positional + known.map { if (it in named) named[it] else ABSENT }
    }

    /** All arguments of what takes any name. */
    fun allNamed(): Map<String, Any?> =
        if (positional.isEmpty()) named else throw TemplateUnknown("an argument without name of $what")

    /** All arguments where they have no names. */
    fun all(): List<Any?> {
        named.keys.firstOrNull()?.let { throw TemplateUnknown("the argument '$it' of $what") }
        return positional
    }
}

internal val ABSENT = Any()

internal fun required(value: Any?, what: String): Any? =
    if (value === ABSENT) throw TemplateFailure("an argument of $what is missing") else value

/** More text than this is no conversation that a device could answer. */
internal const val MAX_TEXT = 1 shl 21

private const val MAX_ITEMS = 1 shl 20

private const val MAX_NESTING = 100

// What Java and Python write alike.
private val PLAIN_DOUBLES = 1e-3..1e7

internal fun kind(value: Any?): String = when (value) {
    null -> "None"
    is Boolean -> "a truth value"
    is Long, is Double -> "a number"
    is String -> "a text"
    is List<*> -> "a list"
    is Map<*, *> -> "a mapping"
    is Undefined -> "an undefined value"
    is Namespace -> "a namespace"
    else -> "a function"
}

internal fun isTrue(value: Any?): Boolean = when (value) {
    null, is Undefined -> false
    is Boolean -> value
    is Long -> value != 0L
    is Double -> value != 0.0
    is String -> value.isNotEmpty()
    is List<*> -> value.isNotEmpty()
    is Map<*, *> -> value.isNotEmpty()
    else -> true
}

/** [value] as it is printed. */
internal fun text(value: Any?): String = when (value) {
    null -> "None"
    is Boolean -> if (value) "True" else "False"
    is String -> value
    is Long -> value.toString()
    is Double ->
        if (value == 0.0 || abs(value) in PLAIN_DOUBLES) value.toString() else throw TemplateUnknown("the number $value as text")
    is Undefined -> ""
    else -> throw TemplateUnknown("${kind(value)} as text")
}

/** What a loop over [value] goes through. */
internal fun items(value: Any?): List<Any?> = when (value) {
    is List<*> -> value
    is Map<*, *> -> value.keys.toList()
    is String -> characters(value)
    is Undefined -> emptyList()
    else -> throw TemplateFailure("${kind(value)} cannot be gone through")
}

internal fun characters(text: String): List<String> {
    if (text.length > MAX_ITEMS) throw TemplateFailure("a list is longer than $MAX_ITEMS")
    val out = ArrayList<String>(text.length)
    var at = 0
    while (at < text.length) {
        val end = at + Character.charCount(text.codePointAt(at))
        out.add(text.substring(at, end))
        at = end
    }
    return out
}

/** Items of a list or mapping with all that is in it. Throws TemplateFailure above MAX_ITEMS, before time or memory run out. */
internal fun weight(value: Any?, depth: Int = 0): Int {
    if (depth > MAX_NESTING) throw TemplateFailure("a list is nested deeper than $MAX_NESTING")
    return when (value) {
        is List<*> -> value.fold(1) { sum, item -> added(sum, item, depth + 1) }
        is Map<*, *> -> value.values.fold(1) { sum, item -> added(sum, item, depth + 1) }
        else -> 1
    }
}

private fun added(sum: Int, item: Any?, depth: Int): Int {
    val all = sum + weight(item, depth)
    return if (all <= MAX_ITEMS) all else throw TemplateFailure("a list is longer than $MAX_ITEMS")
}

internal fun size(value: Any?): Long = when (value) {
    is String -> value.codePointCount(0, value.length).toLong()
    is List<*> -> value.size.toLong()
    is Map<*, *> -> value.size.toLong()
    is Undefined -> 0
    else -> throw TemplateFailure("${kind(value)} has no length")
}

/** Long or Double, truth values as 1 and 0; null for what is no number. */
internal fun number(value: Any?): Number? = when (value) {
    is Boolean -> if (value) 1L else 0L
    is Long -> value
    is Double -> value
    else -> null
}

internal fun equal(left: Any?, right: Any?): Boolean {
    val a = number(left)
    val b = number(right)
    if (a != null && b != null) return if (a is Long && b is Long) a == b else a.toDouble() == b.toDouble()
    return when {
        left is List<*> && right is List<*> -> left.size == right.size && left.indices.all { equal(left[it], right[it]) }
        left is Map<*, *> && right is Map<*, *> ->
            left.size == right.size && left.all { (key, value) -> right.containsKey(key) && equal(value, right[key]) }
        left is Undefined -> right is Undefined
        else -> left == right
    }
}

/** Below, equal or above 0 as [left] is to [right]. */
internal fun compared(left: Any?, right: Any?): Int {
    val a = number(left)
    val b = number(right)
    return when {
        a is Long && b is Long -> a.compareTo(b)
        a != null && b != null -> a.toDouble().compareTo(b.toDouble())
        left is String && right is String -> comparedTexts(left, right)
        left is List<*> && right is List<*> -> throw TemplateUnknown("the order of lists")
        else -> throw mismatch("compared", left, right)
    }
}

/** By code points: Java's own order is of UTF-16 units. */
private fun comparedTexts(left: String, right: String): Int {
    val same = left.commonPrefixWith(right).length
    if (same == left.length || same == right.length) return left.length - right.length
    return left.codePointAt(same) - right.codePointAt(same)
}

internal fun contains(container: Any?, item: Any?): Boolean = when (container) {
    is String -> if (item is String) item in container else throw mismatch("looked for", item, container)
    is Map<*, *> -> container.containsKey(key(item))
    else -> items(container).any { equal(it, item) }
}

/** [value] as a key. */
internal fun key(value: Any?): Any? =
    if (value is List<*> || value is Map<*, *>) throw TemplateFailure("${kind(value)} as a key") else value

internal fun mismatch(what: String, left: Any?, right: Any?): TemplateFailure {
    val undefined = left as? Undefined ?: right as? Undefined
    return TemplateFailure(undefined?.why ?: "${kind(left)} and ${kind(right)} cannot be $what")
}

internal fun arithmetic(operator: String, left: Any?, right: Any?): Any? {
    if (operator == "~") return bounded(text(left) + text(right))
    val a = number(left)
    val b = number(right)
    return when {
        a is Long && b is Long && operator != "/" -> whole(operator, a, b)
        a != null && b != null -> decimal(operator, a.toDouble(), b.toDouble())
        operator == "+" && left is String && right is String -> bounded(left + right)
        operator == "+" && left is List<*> && right is List<*> ->
            left + right
        operator == "*" && left is String && b is Long -> repeated(left, b)
        operator == "*" && right is String && a is Long -> repeated(right, a)
        operator == "*" && (left is List<*> || right is List<*>) -> throw TemplateUnknown("a list that is multiplied")
        operator == "%" && left is String -> throw TemplateUnknown("the format of a text by '%'")
        else -> throw mismatch("joined by '$operator'", left, right)
    }
}

private fun whole(operator: String, a: Long, b: Long): Any = try {
    when (operator) {
        "+" -> Math.addExact(a, b)
        "-" -> Math.subtractExact(a, b)
        "*" -> Math.multiplyExact(a, b)
        "//" -> Math.floorDiv(a, nonZero(b))
        "%" -> Math.floorMod(a, nonZero(b))
        else -> power(a, b)
    }
} catch (error: ArithmeticException) {
    throw TemplateUnknown("a number beyond 64 bits")
}

private fun power(base: Long, exponent: Long): Long {
    if (exponent !in 0..64) throw TemplateUnknown("the power $base ** $exponent")
    return (0 until exponent).fold(1L) { value, _ -> Math.multiplyExact(value, base) }
}

private fun nonZero(b: Long): Long = if (b == 0L) throw TemplateFailure("division by zero") else b

private fun decimal(operator: String, a: Double, b: Double): Double {
    if (operator in DIVISIONS && b == 0.0) throw TemplateFailure("division by zero")
    return when (operator) {
        "+" -> a + b
        "-" -> a - b
        "*" -> a * b
        "/" -> a / b
        else -> throw TemplateUnknown("'$operator' of numbers that are not whole")
    }
}

private val DIVISIONS = listOf("/", "//", "%")

private fun repeated(text: String, times: Long): String {
    if (text.isEmpty() || times <= 0) return ""
    if (times > MAX_TEXT / text.length) throw TemplateFailure("a text is longer than $MAX_TEXT")
    return text.repeat(times.toInt())
}

internal fun bounded(text: String): String =
    if (text.length > MAX_TEXT) throw TemplateFailure("a text is longer than $MAX_TEXT") else text

/** [items] as texts with [between] between them: a few items may be the same long text again and again. */
internal fun joined(items: List<Any?>, between: String, text: (Any?) -> String): String {
    val out = StringBuilder()
    for ((index, item) in items.withIndex()) {
        if (index > 0) out.append(between)
        out.append(text(item))
        if (out.length > MAX_TEXT) throw TemplateFailure("a text is longer than $MAX_TEXT")
    }
    return out.toString()
}

/** Characters of all texts in [value], of which there are not too many (see [weight]). */
internal fun letters(value: Any?): Long = when (value) {
    is String -> value.length.toLong()
    is List<*> -> value.sumOf { letters(it) }
    is Map<*, *> -> value.entries.sumOf { letters(it.key) + letters(it.value) }
    else -> 0
}

/** `of[index]`, undefined where there is no such item. */
internal fun item(of: Any?, index: Any?): Any? {
    if (of is Undefined) throw TemplateFailure(of.why)
    if (of is Map<*, *> && of.containsKey(index)) return of[index]
    val place = number(index) as? Long
    if (place != null && (of is List<*> || of is String)) {
        val items = items(of)
        val at = if (place < 0) place + items.size else place
        return if (at in items.indices) items[at.toInt()] else missing(of, place)
    }
    return if (index is String) attribute(of, index) else missing(of, index)
}

/** `of.name`: a method, or the item of that name. */
internal fun attribute(of: Any?, name: String): Any? = when {
    of is Undefined -> throw TemplateFailure(of.why)
    of is Namespace -> if (name in of.fields) of.fields[name] else missing(of, name)
    else -> method(of, name) ?: if (of is Map<*, *> && of.containsKey(name)) of[name] else missing(of, name)
}

// In the words of jinja2.
private fun missing(of: Any?, name: Any?): Undefined {
    val type = when (of) {
        null -> "None"
        is String -> "str object"
        is List<*> -> "list object"
        is Map<*, *> -> "dict object"
        else -> kind(of)
    }
    val why = if (name is String) "'$type' has no attribute '$name'" else "$type has no element $name"
    return Undefined(why, mayBeMethod = of is String || of is List<*> || of is Map<*, *>)
}

/** `of[start:stop:step]`; ABSENT for a bound that is not given. */
internal fun slice(of: Any?, start: Any?, stop: Any?, step: Any?): Any? {
    if (of is Undefined) throw TemplateFailure(of.why)
    if (of !is List<*> && of !is String) throw TemplateFailure("a slice of ${kind(of)}")
    val items = items(of)
    val stride = bound(step) ?: 1L
    if (stride == 0L) throw TemplateFailure("the step of a slice is 0")
    val size = items.size.toLong()
    val least = if (stride > 0) 0L else -1L
    val most = if (stride > 0) size else size - 1
    fun place(value: Any?, default: Long) = bound(value)?.let { (if (it < 0) it + size else it).coerceIn(least, most) } ?: default
    val from = place(start, if (stride > 0) 0 else size - 1)
    val to = place(stop, if (stride > 0) size else -1)
    val found = ArrayList<Any?>()
    var at = from
    while (if (stride > 0) at < to else at > to) {
        found.add(items[at.toInt()])
        at += stride.coerceIn(-size - 1, size + 1)
    }
    return if (of is String) found.joinToString("") else found
}

private fun bound(value: Any?): Long? = when (value) {
    null, ABSENT -> null
    else -> number(value) as? Long ?: throw TemplateFailure("the bound of a slice is ${kind(value)}")
}
