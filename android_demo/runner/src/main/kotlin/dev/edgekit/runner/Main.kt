package dev.edgekit.runner

import dev.edgekit.BundleException
import dev.edgekit.Json
import dev.edgekit.JsonException
import dev.edgekit.RuntimeUnavailableException
import dev.edgekit.UnsupportedException
import dev.edgekit.UsageException
import java.io.BufferedReader
import java.io.FileDescriptor
import java.io.FileOutputStream
import java.io.PrintStream
import kotlin.system.exitProcess

/** Runs a bundle as its host tells it to, docs/runner.md: `Main '{"bundle": DIR, ...}'`. It decides nothing and keeps nothing. */
public object Main {
    private const val LONGEST_MESSAGE = 300

    /** Answers requests until stdin ends. */
    @JvmStatic
    public fun main(arguments: Array<String>) {
        val answers = FileOutputStream(FileDescriptor.out)
        System.setOut(PrintStream(FileOutputStream(FileDescriptor.err), true)) // what libraries print is no answer
        val say = { answer: Map<String, Any?> -> answers.write((Json.write(answer) + "\n").toByteArray()) }
        try {
            Runner(settings(arguments)).use { runner ->
                say(runner.facts())
                requests(System.`in`.bufferedReader()) { runner.answer(it, say) }
            }
        } catch (error: Throwable) { // whatever it is, the host is told
            say(mapOf("error" to kind(error), "message" to message(error)))
            exitProcess(1)
        }
        exitProcess(0)
    }

    private fun settings(arguments: Array<String>): Request {
        val text = arguments.singleOrNull()
            ?: throw UsageException("${arguments.size} arguments, one expected: a JSON object with the settings")
        return Request.parse(text)
    }

    private fun requests(lines: BufferedReader, answer: (Request) -> Unit) {
        while (true) answer(Request.parse(lines.readLine() ?: return))
    }

    private fun kind(error: Throwable): String = when (error) {
        is UsageException -> "UsageError"
        is RuntimeUnavailableException -> "RuntimeUnavailable"
        is UnsupportedException -> "UnsupportedError"
        else -> "BundleError"
    }

    private fun message(error: Throwable): String {
        val text = error.message.orEmpty()
        if (error.javaClass.name.startsWith("dev.edgekit.")) return text
        return "${error.javaClass.simpleName}: ${text.split(Regex("\\s+")).joinToString(" ").take(LONGEST_MESSAGE)}"
    }
}

/** A JSON object from the host; what is missing or of another kind is its mistake. */
internal class Request(private val fields: Map<*, *>) {
    fun text(key: String): String = fields[key] as? String ?: wrong(key, "text")

    fun text(key: String, missing: String): String = if (key in fields) text(key) else missing

    fun number(key: String): Int {
        val value = fields[key] as? Long ?: wrong(key, "a whole number")
        if (value !in 0..Int.MAX_VALUE) wrong(key, "a number of 32 bits")
        return value.toInt()
    }

    fun number(key: String, missing: Int): Int = if (key in fields) number(key) else missing

    fun numbers(key: String): LongArray =
        (fields[key] as? List<*> ?: wrong(key, "a list")).map { it as? Long ?: wrong(key, "a list of whole numbers") }.toLongArray()

    fun texts(key: String): List<String> =
        (fields[key] as? List<*> ?: wrong(key, "a list")).map { it as? String ?: wrong(key, "a list of texts") }

    /** Objects by name; none where the key is missing. */
    fun objects(key: String): Map<String, Request> {
        if (key !in fields) return emptyMap()
        val entries = (fields[key] as? Map<*, *> ?: wrong(key, "an object")).entries
        return entries.associate { (name, value) -> name as String to Request(value as? Map<*, *> ?: wrong("$key.$name", "an object")) }
    }

    private fun wrong(key: String, expected: String): Nothing =
        throw UsageException("\"$key\": $expected is expected; push the runner again")

    companion object {
        fun parse(text: String): Request {
            val value = try {
                Json.parse(text)
            } catch (error: JsonException) {
                throw UsageException("a request is not JSON: ${error.message}", error)
            }
            return Request(value as? Map<*, *> ?: throw UsageException("a request is no JSON object"))
        }
    }
}
