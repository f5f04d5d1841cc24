package dev.edgekit.tokenizer

import dev.edgekit.BundleException
import dev.edgekit.Json
import dev.edgekit.JsonException
import dev.edgekit.UnsupportedException
import java.io.File
import java.io.IOException

/**
 * A model's own tokenizer, from tokenizer.json: the same ids and the same text as the Hugging Face tokenizers library gives. Safe to use
 * from several threads.
 */
public class Tokenizer private constructor(private val directory: File, file: Part) {
    private val normalizer = normalizer(file.part("normalizer"))
    private val preTokenizer = preTokenizer(file.part("pre_tokenizer"))
    private val model = model(file.part("model") ?: file.broken("no \"model\""))
    private val decoder = decoder(file.part("decoder"))
    private val template = template(file.part("post_processor"))
    private val added = AddedTokens(if (file.has("added_tokens")) file.parts("added_tokens") else emptyList(), model, normalizer, file)
    private val config = json("tokenizer_config.json")

    /** The texts of `bos_token`, `eos_token`, `pad_token` and `unk_token`, those that the model has. */
    public val specialTokens: Map<String, String> = specialTokens()

    /** The id that begins a text, where the code that feeds the model has to put it. */
    private val begin: Int? =
        if (config["add_bos_token"] == true) specialTokens["bos_token"]?.let { tokenToId(it) } else null

    private val chatTemplate: ChatTemplate? by lazy { readChatTemplate() }

    /**
     * The ids of [text]; half a surrogate pair counts as U+FFFD. [addSpecialTokens] adds what the model expects around a plain text (for
     * instance the token that begins it). Throws UnsupportedException when a regular expression of the tokenizer cannot be matched
     * against this text, BundleException when the text needs the unknown token and the tokenizer has none.
     */
    public fun encode(text: String, addSpecialTokens: Boolean = true): IntArray {
        val own = IntList(text.length / 3)
        for (piece in preTokenizer.split(added.split(wellFormed(text)))) {
            if (piece.id >= 0) own.add(piece.id) else model.tokenize(piece.text, own)
        }
        val ids = IntList(own.size + 4)
        if (addSpecialTokens && begin != null && firstId(own) != begin) ids.add(begin)
        for (part in template.parts) {
            if (part == null) ids.addAll(own.toArray()) else if (addSpecialTokens) ids.addAll(part)
        }
        return ids.toArray()
    }

    /** The text of [ids]; ids that are no tokens are left out, special tokens too if [skipSpecialTokens]. */
    public fun decode(ids: IntArray, skipSpecialTokens: Boolean = true): String {
        val tokens = ArrayList<String>(ids.size)
        for (id in ids) {
            val token = added.text(id) ?: model.token(id) ?: continue
            if (!skipSpecialTokens || !added.isSpecial(token)) tokens.add(token)
        }
        return decoder.decode(tokens).joinToString("")
    }

    /** The id of [token] as it stands in the vocabulary, or null. */
    public fun tokenToId(token: String): Int? = added.id(token) ?: model.id(token)

    /** Whether the model has a chat template. */
    public val hasChatTemplate: Boolean get() = chatTemplate != null

    /**
     * The ids of a conversation, ending where the assistant begins. [messages] are pairs of role (system, user, assistant) and content.
     * Throws UnsupportedException without chat template or for one beyond what [ChatTemplate] knows, BundleException when the template
     * refuses the messages.
     */
    public fun chat(messages: List<Pair<String, String>>): IntArray =
        encode(chatText(messages), addSpecialTokens = false) // the template wrote the special tokens

    /** The text of a conversation, as [chat] tokenizes it. */
    public fun chatText(messages: List<Pair<String, String>>): String {
        val template = chatTemplate ?: throw UnsupportedException(
            "$directory: the model has no chat template; generate with chat = false for plain continuation"
        )
        return template.render(messages, specialTokens)
    }

    /** The first id that the template and the text make, or -1. */
    private fun firstId(own: IntList): Int {
        for (part in template.parts) {
            if (part == null && own.size > 0) return own.values[0]
            if (part != null && part.isNotEmpty()) return part[0]
        }
        return -1
    }

    private fun specialTokens(): Map<String, String> {
        val named = json("special_tokens_map.json") + config
        val found = LinkedHashMap<String, String>()
        for (name in listOf("bos_token", "eos_token", "pad_token", "unk_token")) {
            val token = named[name]
            val text = if (token is Map<*, *>) token["content"] else token
            if (text is String) found[name] = text
        }
        return found
    }

    private fun readChatTemplate(): ChatTemplate? {
        val file = File(directory, "chat_template.jinja")
        if (file.isFile) return ChatTemplate(read(file), file.path)
        val given = config["chat_template"]
        val named = (given as? List<*>)?.firstOrNull { (it as? Map<*, *>)?.get("name") == "default" }
        val text = if (given is List<*>) (named as? Map<*, *>)?.get("template") else given
        return (text as? String)?.let { ChatTemplate(it, File(directory, "tokenizer_config.json").path) }
    }

    private fun json(name: String): Map<String, Any?> {
        val file = File(directory, name)
        if (!file.isFile) return emptyMap()
        @Suppress("UNCHECKED_CAST") // keys of JSON objects are texts
        return parse(file) as? Map<String, Any?> ?: emptyMap()
    }

    public companion object {
        /**
         * The tokenizer of a bundle's [directory]. Throws BundleException when tokenizer.json is missing or broken,
         * UnsupportedException naming the part that this tokenizer does not know.
         */
        public fun load(directory: File): Tokenizer {
            val file = File(directory, "tokenizer.json")
            if (!file.isFile) throw BundleException("$directory: no tokenizer.json; export from a directory that has one, or feed token ids")
            val fields = parse(file) as? Map<*, *> ?: throw BundleException("$file: no JSON object; export the model again")
            val part = Part(file.path, fields)
            val version = part.textOrNull("version")
            if (version != null && version != "1.0") part.refuse("version \"$version\" of the format")
            return Tokenizer(directory, part)
        }

        private fun parse(file: File): Any? = try {
            Json.parse(read(file), ::rustDouble)
        } catch (error: JsonException) {
            throw BundleException("$file: not valid JSON (${error.message}); export the model again", error)
        }

        private fun read(file: File): String = try {
            file.readText()
        } catch (error: IOException) {
            throw BundleException("$file: cannot be read (${error.message})", error)
        }
    }
}
