package dev.edgekit.tokenizer

import dev.edgekit.BundleException
import dev.edgekit.UnsupportedException

/** One object of tokenizer.json; [where] names it in errors. */
internal class Part(val where: String, private val fields: Map<*, *>) {
    val type: String get() = text("type")

    fun has(key: String): Boolean = fields[key] != null

    fun text(key: String): String = textOrNull(key) ?: broken("no text \"$key\"")

    fun textOrNull(key: String): String? = optional<String>(key, "a text")

    fun flag(key: String): Boolean = flagOrNull(key) ?: broken("no flag \"$key\"")

    fun flagOrNull(key: String): Boolean? = optional<Boolean>(key, "true or false")

    fun number(key: String): Int = numberOrNull(key) ?: broken("no number \"$key\"")

    fun numberOrNull(key: String): Int? {
        val value = optional<Long>(key, "a whole number") ?: return null
        if (value !in 0..Int.MAX_VALUE) broken("\"$key\" is $value")
        return value.toInt()
    }

    fun decimalOrNull(key: String): Double? = optional<Number>(key, "a number")?.toDouble()

    fun part(key: String): Part? = optional<Map<*, *>>(key, "an object")?.let { Part("$where $key", it) }

    fun parts(key: String): List<Part> = list(key).mapIndexed { index, item ->
        Part("$where $key[$index]", item as? Map<*, *> ?: broken("\"$key\"[$index] is no object"))
    }

    fun list(key: String): List<Any?> = optional<List<Any?>>(key, "a list") ?: broken("no list \"$key\"")

    fun map(key: String): Map<*, *> = optional<Map<*, *>>(key, "an object") ?: broken("no object \"$key\"")

    fun broken(what: String): Nothing = throw BundleException("$where: $what; export the model again")

    fun refuse(what: String): Nothing = throw UnsupportedException("$where: $what is not supported on this device")

    private inline fun <reified T> optional(key: String, expected: String): T? {
        val value = fields[key] ?: return null
        return value as? T ?: broken("\"$key\" is not $expected")
    }
}
