package dev.edgekit.pack

import dev.edgekit.Bundle
import dev.edgekit.BundleException
import dev.edgekit.Fields
import dev.edgekit.Json
import dev.edgekit.JsonException
import dev.edgekit.Spec
import java.io.DataInputStream
import java.io.EOFException
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.charset.CharacterCodingException
import java.security.MessageDigest
import java.util.zip.DataFormatException
import java.util.zip.Inflater

/** A piece of a file. [packed] is 0 where it is the base version's, from byte [base] of its file of the same name. */
internal class PackChunk(fields: Fields) {
    val bytes: Int
    val packed: Int
    val sha256 = fields.text("sha256")
    val base: Long? = fields.wholeOrNull("base")

    init {
        val size = fields.whole("bytes")
        val length = fields.whole("packed")
        if (size !in 1..LARGEST || length !in 0..(size + size / 8 + 1024)) {
            throw BundleException("${fields.where}: a chunk of $size bytes packed into $length; a chunk has 1 to $LARGEST")
        }
        bytes = size.toInt()
        packed = length.toInt()
        fields.end()
    }

    private companion object {
        const val LARGEST = 4L shl 20
    }
}

/** A file of the bundle. */
internal class PackedFile(fields: Fields) {
    val path = fields.text("path")
    val bytes = fields.whole("bytes")
    val sha256 = fields.text("sha256")
    val chunks = fields.parts("chunks", ::PackChunk)

    init {
        fields.end()
    }
}

/** The front of a pack, docs/pack.md sections 2 and 3. [size] bytes of the pack are before its chunks. */
internal class PackHead private constructor(
    val base: String,
    val files: List<PackedFile>,
    val size: Long,
    val prologue: ByteArray,
    val signature: ByteArray?,
) {
    /** Bytes of the whole pack. */
    val total = size + files.sumOf { file -> file.chunks.sumOf { it.packed.toLong() } }

    /** Bytes of all files. */
    val nbytes = files.sumOf { it.bytes }

    companion object {
        private const val PROLOGUE = 56
        private const val SIGNATURE = 64
        private const val LARGEST = 16 shl 20
        private const val MOST = 65_536
        private val SHA256 = Regex("[0-9a-f]{64}")

        /** Reads and checks all before the chunks. Throws [BundleException]. */
        fun read(input: DataInputStream, where: String): PackHead {
            val prologue = exactly(input, PROLOGUE, where)
            val numbers = ByteBuffer.wrap(prologue).order(ByteOrder.LITTLE_ENDIAN)
            if (String(prologue, 0, 8, Charsets.ISO_8859_1) != "EDGEPACK") {
                throw BundleException("$where: not an edgekit pack; give a file that `edgekit pack -o` made")
            }
            val version = numbers.getInt(8)
            if (version != 1) throw BundleException("$where: pack version $version, this edgekit reads 1; take a newer one")
            val signed = numbers.getInt(12)
            val length = numbers.getInt(16)
            val whole = numbers.getInt(20)
            if (signed !in 0..1 || length !in 1..LARGEST || whole !in 1..LARGEST) {
                throw BundleException("$where: impossible sizes in its first bytes; download it again")
            }
            val signature = if (signed == 1) exactly(input, SIGNATURE, where) else null
            val packed = exactly(input, length, where)
            if (!MessageDigest.getInstance("SHA-256").digest(packed).contentEquals(prologue.copyOfRange(24, PROLOGUE))) {
                throw BundleException("$where: the head's sha256 is not what its first bytes say; download it again")
            }
            val size = PROLOGUE.toLong() + (signature?.size ?: 0) + length
            return parse(inflate(packed, whole, where), where, size, prologue, signature)
        }

        private fun exactly(input: DataInputStream, count: Int, where: String): ByteArray = try {
            ByteArray(count).also { input.readFully(it) }
        } catch (error: EOFException) {
            throw BundleException("$where: ends inside its head; download it again", error)
        }

        private fun inflate(packed: ByteArray, size: Int, where: String): String {
            val inflater = Inflater()
            try {
                inflater.setInput(packed)
                val text = ByteArray(size)
                var done = 0
                while (done < size && !inflater.finished()) {
                    val some = inflater.inflate(text, done, size - done)
                    if (some == 0) break
                    done += some
                }
                if (done == size && inflater.inflate(ByteArray(1)) == 0 && inflater.finished() && inflater.remaining == 0) {
                    return Charsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(text)).toString()
                }
            } catch (error: DataFormatException) {
                throw BundleException("$where: the head is damaged; download it again", error)
            } catch (error: CharacterCodingException) {
                throw BundleException("$where: the head is no JSON; download it again", error)
            } finally {
                inflater.end()
            }
            throw BundleException("$where: the head is damaged; download it again")
        }

        private fun parse(text: String, where: String, size: Long, prologue: ByteArray, signature: ByteArray?): PackHead {
            val value = try {
                Json.parse(text)
            } catch (error: JsonException) {
                throw BundleException("$where: the head is no JSON; download it again", error)
            }
            val fields = Fields("$where: head", value)
            fields.text("name")
            val base = fields.text("base")
            val files = fields.parts("files", ::PackedFile)
            fields.end()
            check(files, base, where)
            return PackHead(base, files, size, prologue, signature)
        }

        private fun check(files: List<PackedFile>, base: String, where: String) {
            if (files.firstOrNull()?.path != Spec.MANIFEST) {
                throw BundleException("$where: the head does not begin with ${Spec.MANIFEST}; download it again")
            }
            if (files.size > MOST || files.sumOf { it.chunks.size } > MOST) {
                throw BundleException("$where: lists more than $MOST files or chunks; no pack has so many")
            }
            if (base.isNotEmpty() && !SHA256.matches(base)) throw BundleException("$where: the head's base is no sha256")
            val seen = HashSet<String>()
            for (file in files) {
                Bundle.confine(file.path, where)
                val name = "$where: \"${file.path.take(120)}\""
                if (!seen.add(file.path.lowercase())) {
                    throw BundleException("$name: is listed twice (upper and lower case are one); do not use this pack")
                }
                checkFile(file, base.isNotEmpty(), name)
            }
            for (file in files) {
                val parents = generateSequence(file.path.lowercase().substringBeforeLast('/', "")) { it.substringBeforeLast('/', "") }
                if (parents.takeWhile { it.isNotEmpty() }.any { it in seen }) {
                    throw BundleException("$where: \"${file.path.take(120)}\" lies in what is a file itself; do not use this pack")
                }
            }
        }

        private fun checkFile(file: PackedFile, based: Boolean, where: String) {
            if (!SHA256.matches(file.sha256) || !file.chunks.all { SHA256.matches(it.sha256) }) {
                throw BundleException("$where: a sha256 is not 64 hexadecimal digits; download the pack again")
            }
            if (file.chunks.any { if (it.base == null) it.packed == 0 else !based || it.base < 0 }) {
                throw BundleException("$where: a chunk refers to a base version that is not there; download the pack again")
            }
            if (file.chunks.sumOf { it.bytes.toLong() } != file.bytes) {
                throw BundleException("$where: its chunks do not add up to its ${file.bytes} bytes; download the pack again")
            }
        }
    }
}
