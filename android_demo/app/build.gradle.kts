plugins {
    alias(libs.plugins.android.application)
    alias(libs.plugins.kotlin.android)
}

android {
    namespace = "dev.edgekit.demo"
    compileSdk = 34

    defaultConfig {
        applicationId = "dev.edgekit.demo"
        minSdk = 26
        targetSdk = 34
        versionCode = 1
        val python = rootDir.resolve("../edgekit/__init__.py").readText()
        versionName = Regex("__version__ = \"(.+)\"").find(python)!!.groupValues[1]
        ndk { abiFilters += listOf("arm64-v8a", "x86_64") }
    }

    buildTypes {
        release {
            isMinifyEnabled = true // the library's consumer-rules.pro says what must stay
            proguardFiles(getDefaultProguardFile("proguard-android-optimize.txt"))
            signingConfig = signingConfigs["debug"] // a demo; sign your own app with your own key
        }
    }

    packaging {
        // Libraries stay uncompressed and are mapped from the APK. AGP aligns them to 16 KiB, which Android 15 needs on
        // devices with pages of that size.
        jniLibs.useLegacyPackaging = false
    }

    // Bundles in src/main/assets/bundles/NAME: weights hardly compress, and reading them uncompressed is quicker.
    androidResources { noCompress += listOf("data", "onnx", "safetensors") }

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_1_8
        targetCompatibility = JavaVersion.VERSION_1_8
    }
}

kotlin {
    compilerOptions { jvmTarget = org.jetbrains.kotlin.gradle.dsl.JvmTarget.JVM_1_8 }
}

dependencies {
    implementation(project(":edgekit"))
    testImplementation(libs.junit)
}
