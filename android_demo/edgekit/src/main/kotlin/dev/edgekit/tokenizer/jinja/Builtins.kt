package dev.edgekit.tokenizer.jinja

import dev.edgekit.Json
import java.text.SimpleDateFormat
import java.util.Date
import java.util.Locale

private const val MAX_RANGE = 100_000L // jinja2's own limit in a sandbox

/** The functions that every template sees. */
internal fun environment(): Map<String, Any?> = listOf(
    Function("range") { range(it) },
    Function("namespace") { Namespace(HashMap(it.allNamed())) },
    Function("raise_exception") { throw TemplateFailure(text(required(it.take("message")[0], "raise_exception"))) },
    Function("strftime_now") { now(textOf(required(it.take("format")[0], "strftime_now"), "the format of a date")) },
).associateBy { it.name }

/** Names of jinja2's environment that are missing here. */
internal val UNKNOWN_NAMES = setOf("dict", "lipsum", "cycler", "joiner", "varargs", "kwargs", "caller", "self")

private fun range(given: Given): List<Any?> {
    val bounds = given.all().map { number(it) as? Long ?: throw TemplateFailure("range of ${kind(it)}") }
    if (bounds.size !in 1..3) throw TemplateFailure("range takes 1 to 3 arguments, not ${bounds.size}")
    val start = if (bounds.size == 1) 0L else bounds[0]
    val stop = if (bounds.size == 1) bounds[0] else bounds[1]
    val step = bounds.getOrElse(2) { 1L }
    if (step == 0L) throw TemplateFailure("the step of a range is 0")
    val found = ArrayList<Any?>()
    var at = start
    while (if (step > 0) at < stop else at > stop) {
        if (found.size >= MAX_RANGE) throw TemplateFailure("a range is longer than $MAX_RANGE")
        found.add(at)
        at = Math.addExact(at, step)
    }
    return found
}

private val DATE_PARTS = mapOf(
    'd' to "dd", 'm' to "MM", 'Y' to "yyyy", 'y' to "yy", 'B' to "MMMM", 'b' to "MMM", 'A' to "EEEE", 'a' to "EEE", 'H' to "HH",
    'I' to "hh", 'M' to "mm", 'S' to "ss", 'p' to "a", 'j' to "DDD",
)

/** The time as [style], which is strftime's, asks for it. */
private fun now(style: String): String {
    val date = Date()
    val out = StringBuilder()
    var at = 0
    while (at < style.length) {
        val c = style[at++]
        if (c != '%') {
            out.append(c)
            continue
        }
        val letter = style.getOrNull(at++)
        val part = DATE_PARTS[letter]
        when {
            letter == '%' -> out.append('%')
            part == null -> throw TemplateUnknown("'%${letter ?: ""}' of a date")
            else -> out.append(SimpleDateFormat(part, Locale.US).format(date))
        }
    }
    return out.toString()
}

private fun textOf(value: Any?, what: String): String = value as? String ?: throw mismatch("used as $what", value, "")

private fun textOrNull(value: Any?, what: String): String? = if (value === ABSENT || value == null) null else textOf(value, what)

private fun count(value: Any?): Long =
    if (value === ABSENT || value == null) -1 else number(value) as? Long ?: throw TemplateFailure("${kind(value)} as a count")

/** The method [name] of [of], or null. */
internal fun method(of: Any?, name: String): Function? {
    val call: ((Given) -> Any?)? = when (of) {
        is String -> textMethod(of, name)
        is Map<*, *> -> mapMethod(of, name)
        else -> null
    }
    return call?.let { Function(name, it) }
}

private fun textMethod(of: String, name: String): ((Given) -> Any?)? = when (name) {
    "strip" -> { given -> stripped(of, textOrNull(given.take("chars")[0], "what is stripped")) }
    "lstrip" -> { given -> stripped(of, textOrNull(given.take("chars")[0], "what is stripped"), right = false) }
    "rstrip" -> { given -> stripped(of, textOrNull(given.take("chars")[0], "what is stripped"), left = false) }
    "split" -> { given -> given.take("sep", "maxsplit").let { split(of, textOrNull(it[0], "a separator"), count(it[1])) } }
    "startswith" -> { given -> affixes(given).any(of::startsWith) }
    "endswith" -> { given -> affixes(given).any(of::endsWith) }
    "replace" -> { given -> replace(of, given) }
    "upper" -> { given -> upper(of).also { given.take() } }
    "lower" -> { given -> lower(of).also { given.take() } }
    "title" -> { given -> title(of).also { given.take() } }
    "capitalize" -> { given -> capitalized(of).also { given.take() } }
    "join" -> { given ->
        joined(items(required(given.take("items")[0], name)), of) { textOf(it, "an item of join") }
    }
    else -> null
}

private fun affixes(given: Given): List<String> {
    val value = required(given.take("affix")[0], given.what)
    return (value as? List<*> ?: listOf(value)).map { textOf(it, "the beginning or end of a text") }
}

private fun replace(text: String, given: Given): String {
    val (old, new, most) = given.take("old", "new", "count")
    val (from, to) = listOf(old, new).map { textOf(required(it, "replace"), "an argument of replace") }
    return replaced(text, from, to, count(most))
}

private fun mapMethod(of: Map<*, *>, name: String): ((Given) -> Any?)? = when (name) {
    "get" -> { given ->
        val (key, default) = given.take("key", "default")
        if (of.containsKey(key(required(key, "get")))) of[key] else default.takeIf { it !== ABSENT }
    }
    "items" -> { given -> pairs(of).also { given.take() } }
    "keys" -> { given -> of.keys.toList().also { given.take() } }
    "values" -> { given -> of.values.toList().also { given.take() } }
    else -> null
}

private fun pairs(of: Map<*, *>): List<List<Any?>> = of.map { listOf(it.key, it.value) }

/** What the filter [name] makes of [value]. */
internal fun filter(name: String, value: Any?, given: Given): Any? = when (name) {
    "trim" -> stripped(text(value), textOrNull(given.take("chars")[0], "what is trimmed"))
    "upper" -> upper(text(value)).also { given.take() }
    "lower" -> lower(text(value)).also { given.take() }
    "capitalize" -> capitalized(text(value)).also { given.take() }
    "string" -> text(value).also { given.take() }
    "length", "count" -> size(value).also { given.take() }
    "list" -> items(value).also { given.take() }
    "first" -> items(value).firstOr("first").also { given.take() }
    "last" -> items(value).asReversed().firstOr("last").also { given.take() }
    "items" -> itemsOf(value).also { given.take() }
    "replace" -> replace(text(value), given)
    "default", "d" -> default(value, given)
    "join" -> joined(value, given.take("d")[0])
    "tojson" -> json(value, given)
    "selectattr" -> selected(value, given, true)
    "rejectattr" -> selected(value, given, false)
    else -> throw TemplateUnknown("the filter '$name'")
}

private fun itemsOf(value: Any?): List<Any?> = when (value) {
    is Map<*, *> -> pairs(value)
    is Undefined -> emptyList()
    else -> throw TemplateFailure("${kind(value)} has no items")
}

private fun joined(value: Any?, between: Any?): String = joined(items(value), if (between === ABSENT) "" else text(between), ::text)

private fun List<Any?>.firstOr(what: String): Any? = if (isEmpty()) Undefined("no item was found by $what") else this[0]

private fun default(value: Any?, given: Given): Any? {
    val (other, falseToo) = given.take("default_value", "boolean")
    val isMissing = value is Undefined || falseToo !== ABSENT && isTrue(falseToo) && !isTrue(value)
    return if (!isMissing) value else if (other === ABSENT) "" else other
}

private fun json(value: Any?, given: Given): String {
    val ascii = given.take("ensure_ascii")[0]
    if (ascii !== ABSENT && isTrue(ascii)) throw TemplateUnknown("tojson with ensure_ascii")
    weight(value)
    if (letters(value) > MAX_TEXT) throw TemplateFailure("a text is longer than $MAX_TEXT")
    try {
        return bounded(Json.write(value))
    } catch (error: IllegalArgumentException) {
        throw TemplateUnknown("JSON of this value (${error.message})")
    }
}

private fun selected(value: Any?, given: Given, wanted: Boolean): List<Any?> {
    if (!isTrue(value)) return emptyList() // jinja2 does not even look whether none is a list
    val arguments = given.all()
    val path = textOf(arguments.firstOrNull(), "an attribute").split('.')
    val test = arguments.getOrNull(1)?.let { textOf(it, "a test") }
    val rest = Given("the test '$test'", arguments.drop(2), emptyMap())
    return items(value).filter { one ->
        val found = path.fold(one) { of, name -> item(of, name) }
        wanted == if (test == null) isTrue(found) else passes(test, found, rest)
    }
}

/** Whether [value] is what the test [name] says. */
internal fun passes(name: String, value: Any?, given: Given): Boolean = when (name) {
    "equalto", "eq", "==" -> equal(value, required(given.take("other")[0], given.what))
    "ne", "!=" -> !equal(value, required(given.take("other")[0], given.what))
    "in" -> contains(required(given.take("container")[0], given.what), value)
    else -> hasKind(name, value).also { given.take() }
}

private fun hasKind(name: String, value: Any?): Boolean = when (name) {
    "defined" -> value !is Undefined
    "undefined" -> value is Undefined
    "none" -> value == null
    "string" -> value is String
    "mapping" -> value is Map<*, *>
    "iterable", "sequence" -> value is List<*> || value is Map<*, *> || value is String || value is Undefined
    "number" -> number(value) != null
    "integer" -> value is Long
    "float" -> value is Double
    "boolean" -> value is Boolean
    "true" -> value == true
    "false" -> value == false
    else -> throw TemplateUnknown("the test '$name'")
}
