package dev.edgekit.tokenizer

import dev.edgekit.BundleException
import dev.edgekit.EdgeKitException
import dev.edgekit.Json
import java.io.DataInputStream
import java.io.DataOutputStream
import java.io.File

/**
 * What tests/android/test_tokenizer.py compares with the Python library. Arguments: a mode and the files that it needs.
 *
 * - `parity JOBS`: each line of JOBS is a directory, a file of texts and a result, between tabs. A text is its length in bytes (4 bytes,
 *   big-endian) and UTF-8. A result is 1, then for each text its ids, its ids without special tokens, and the text of the ids with special
 *   tokens and without; or 0 and the error that loading gave.
 * - `speed DIRECTORY FILE`: prints megabytes of UTF-8 a second of the whole file and of its lines, warm.
 * - `chat JOBS RESULT`: JOBS is a JSON list of `{template, messages, special}`; RESULT the list of `{text}` or `{error}`.
 * - `conversations DIRECTORY JOBS RESULT`: JOBS is a JSON list of lists of messages; RESULT the list of `{ids}` or `{error}`.
 * - `stream DIRECTORY TEXTS RESULT`: the pieces of each text as JSON, two lists for each: from its beginning and from its middle.
 */
public fun main(arguments: Array<String>) {
    when (arguments[0]) {
        "parity" -> File(arguments[1]).forEachLine { line ->
            val (directory, texts, result) = line.split('\t')
            parity(File(directory), File(texts), File(result))
        }
        "speed" -> speed(Tokenizer.load(File(arguments[1])), File(arguments[2]))
        "chat" -> chat(File(arguments[1]), File(arguments[2]))
        "conversations" -> conversations(File(arguments[1]), File(arguments[2]), File(arguments[3]))
        "stream" -> stream(Tokenizer.load(File(arguments[1])), File(arguments[2]), File(arguments[3]))
        else -> throw IllegalArgumentException("unknown mode ${arguments[0]}")
    }
}

private fun readTexts(file: File): List<String> = DataInputStream(file.inputStream().buffered()).use { input ->
    val texts = ArrayList<String>()
    while (input.available() > 0) {
        val bytes = ByteArray(input.readInt())
        input.readFully(bytes)
        texts.add(String(bytes, Charsets.UTF_8))
    }
    texts
}

private fun parity(directory: File, texts: File, result: File) {
    DataOutputStream(result.outputStream().buffered()).use { out ->
        try {
            val tokenizer = Tokenizer.load(directory)
            out.writeInt(1)
            readTexts(texts).forEach { writeAnswer(out, tokenizer, it) }
        } catch (error: EdgeKitException) {
            out.writeInt(0)
            writeText(out, "${error.javaClass.simpleName}: ${error.message}")
        }
    }
}

private fun writeAnswer(out: DataOutputStream, tokenizer: Tokenizer, text: String) {
    val ids = try {
        tokenizer.encode(text)
    } catch (error: BundleException) {
        return out.writeInt(-1)
    }
    writeIds(out, ids)
    writeIds(out, tokenizer.encode(text, addSpecialTokens = false))
    writeText(out, tokenizer.decode(ids, skipSpecialTokens = false))
    writeText(out, tokenizer.decode(ids))
}

private fun writeIds(out: DataOutputStream, ids: IntArray) {
    out.writeInt(ids.size)
    ids.forEach(out::writeInt)
}

private fun writeText(out: DataOutputStream, text: String) {
    val bytes = text.toByteArray(Charsets.UTF_8)
    out.writeInt(bytes.size)
    out.write(bytes)
}

private fun speed(tokenizer: Tokenizer, file: File) {
    val text = file.readText()
    val lines = text.lines()
    val megabytes = file.length() / 1e6
    println("whole %.2f".format(megabytes / fastest { tokenizer.encode(text) }))
    println("lines %.2f".format(megabytes / fastest { lines.forEach { tokenizer.encode(it) } }))
}

/** Seconds of the fastest of five runs. */
private fun fastest(run: () -> Unit): Double = (1..5).minOf {
    val start = System.nanoTime()
    run()
    (System.nanoTime() - start) / 1e9
}

private fun chat(jobs: File, result: File) {
    val answers = (Json.parse(jobs.readText()) as List<*>).map { job ->
        val fields = job as Map<*, *>
        val special = (fields["special"] as Map<*, *>).entries.associate { it.key as String to it.value as String }
        answer("text") { ChatTemplate(fields["template"] as String, "template").render(messages(fields["messages"]), special) }
    }
    result.writeText(Json.write(answers))
}

private fun conversations(directory: File, jobs: File, result: File) {
    val tokenizer = Tokenizer.load(directory)
    val answers = (Json.parse(jobs.readText()) as List<*>).map { job -> answer("ids") { tokenizer.chat(messages(job)).toList() } }
    result.writeText(Json.write(answers))
}

private fun messages(value: Any?): List<Pair<String, String>> = (value as List<*>).map { message ->
    val fields = message as Map<*, *>
    fields["role"] as String to fields["content"] as String
}

private fun answer(name: String, make: () -> Any): Map<String, Any> = try {
    mapOf(name to make())
} catch (error: EdgeKitException) {
    mapOf("error" to "${error.javaClass.simpleName}: ${error.message}")
}

private fun stream(tokenizer: Tokenizer, texts: File, result: File) {
    val answers = readTexts(texts).map { text ->
        val ids = tokenizer.encode(text)
        listOf(pieces(tokenizer, ids, 0), pieces(tokenizer, ids, ids.size / 2))
    }
    result.writeText(Json.write(answers))
}

private fun pieces(tokenizer: Tokenizer, ids: IntArray, from: Int): List<String> {
    val stream = TextStream(tokenizer, ids.copyOfRange(0, from))
    return ids.drop(from).map(stream::push) + stream.rest()
}
